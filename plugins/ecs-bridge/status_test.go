package main

import (
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/dev/testnet"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		spoil func(t *testing.T, h *host)
		conf  string
		code  uint // else 50
		want  string
	}{
		"an interface by the bridge's name, and an attachment": {
			spoil: func(t *testing.T, h *host) {
				h.must(t, "ADD", "c1", testnet.T(t).Path(), conf())
				h.Sh(t, "ip link del ecs-bridge; ip link add ecs-bridge type veth peer name peer")
			},
			conf: conf(), code: types.ErrLimitedConnectivity, want: "1 attachments of network ecs-task are cut off: interface ecs-bridge is a veth",
		},
		"a bridge that is down, and two attachments": {
			spoil: func(t *testing.T, h *host) {
				h.must(t, "ADD", "c1", testnet.T(t).Path(), conf())
				h.must(t, "ADD", "c2", testnet.T(t).Path(), conf())
				h.Sh(t, "ip link set ecs-bridge down")
			},
			conf: conf(), code: types.ErrLimitedConnectivity, want: "2 attachments of network ecs-task are cut off: bridge ecs-bridge is down",
		},
		"no bridge, and an attachment": {
			spoil: func(t *testing.T, h *host) {
				h.must(t, "ADD", "c1", testnet.T(t).Path(), conf())
				h.Sh(t, "ip link del ecs-bridge")
			},
			conf: conf(), code: types.ErrLimitedConnectivity, want: "1 attachments of network ecs-task are cut off: looking up interface ecs-bridge",
		},
		"an interface by the bridge's name": {
			spoil: func(t *testing.T, h *host) {
				h.Sh(t, "ip link add ecs-bridge type veth peer name peer")
			},
			conf: conf(), want: "interface ecs-bridge is a veth",
		},
		"an IPAM plugin that cannot serve": {
			spoil: func(t *testing.T, h *host) {
				h.plugin(t, "other-ipam", `echo '{"code": 50, "msg": "no address is free"}'; exit 1`)
			},
			conf: otherIPAM(), want: "no address is free",
		},
		"a key of ours":   {code: types.ErrInvalidNetworkConfig, conf: conf(`"mtu": -1`), want: "mtu is -1: expected bytes"},
		"no IPAM plugin":  {code: types.ErrInvalidNetworkConfig, conf: strings.Replace(conf(), "ecs-ipam", "none", 1), want: `ipam.type is "none"`},
		"a key of IPAM's": {code: types.ErrInvalidNetworkConfig, conf: strings.Replace(conf(), `"ecs-ipam"`, `"ecs-ipam", "ipv4-subnet": "x"`, 1), want: "ipam.ipv4-subnet"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			before := h.things(t)
			h.must(t, "STATUS", "", "", conf())
			h.left(t, before)
			if test.spoil != nil {
				test.spoil(t, h)
			}
			if test.code == 0 {
				test.code = types.ErrPluginNotAvailable
			}
			h.refused(t, "STATUS", "", "", test.conf, test.code, test.want)
		})
	}
}

// The next ADD brings it up.
func TestStatusOfABridgeThatIsDown(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Sh(t, "ip link add ecs-bridge type bridge")
	h.must(t, "STATUS", "", "", conf())
	task := testnet.T(t)
	h.must(t, "ADD", "c1", task.Path(), conf())
	h.must(t, "STATUS", "", "", conf())
	reach(t, h, task)
}

func TestStatusNamesTheMissingCapability(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	cmd := h.call("STATUS", "", "", conf()).Command(t.Context())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	_, err := testnet.Answer(h.Namespace, cmd)
	testnet.Refused(t, err, types.ErrPluginNotAvailable, "CAP_NET_ADMIN is missing")
}
