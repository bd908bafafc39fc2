package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
)

// With the configurations of the README of AWS's plugin the task has what it has there.
func TestConfigurationsOfAWS(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ file, addrs, routes string }{
		"IPv4": {
			file: "bridge-aws-ipv4.json", addrs: "169.254.172.2/22",
			routes: "169.254.170.2 via 169.254.172.1 onlink\n169.254.172.1 via 169.254.172.1 onlink",
		},
		"IPv6": {
			file: "bridge-aws-ipv6.json", addrs: "2001:db8::2/64",
			routes: "2001:db8::1 via 2001:db8::1 metric 1024 onlink\nfd00:ec2::254 via 2001:db8::1 metric 1024 onlink",
		},
		"both": {
			file: "bridge-aws-dual.json", addrs: "169.254.172.2/22\n2001:db8::2/64",
			routes: "169.254.170.2 via 169.254.172.1 onlink\n169.254.172.1 via 169.254.172.1 onlink\n2001:db8::1 via 2001:db8::1 metric 1024 onlink\nfd00:ec2::254 via 2001:db8::1 metric 1024 onlink",
		},
		"a subnet on the link, no instance metadata": {
			file: "bridge-aws-daemon.json", addrs: "169.254.172.2/22",
			routes: "169.254.170.2 via 169.254.172.1 onlink\n169.254.172.0/24 scope link\n169.254.172.1 via 169.254.172.1 onlink\nblackhole 169.254.169.254",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			aws, err := os.ReadFile(filepath.Join("../../testdata/conf", test.file))
			if err != nil {
				t.Fatal(err)
			}
			h, task := newHost(t), testnet.T(t)
			before := h.things(t)
			h.must(t, "ADD", "c1", task.Path(), string(aws))
			if got := task.Sh(t, `ip -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4`); got != test.addrs {
				t.Errorf("addresses\n%s\nwant\n%s", got, test.addrs)
			}
			got := task.Sh(t, `(ip route show; ip -6 route show) | sed -e 's/ dev [a-z0-9]*//; s/ proto static//; s/ pref medium//; s/ *$//' | sort`)
			if got != test.routes {
				t.Errorf("routes\n%s\nwant\n%s", got, test.routes)
			}
			h.must(t, "DEL", "c1", task.Path(), string(aws))
			h.left(t, before)
		})
	}
}

func TestSecondAddIsRefused(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	h.must(t, "ADD", "c1", task.Path(), conf())
	before := h.things(t)
	h.refused(t, "ADD", "c1", task.Path(), conf(), cniedge.CodeHeld, "has [169.254.172.2/22]")
	h.left(t, before)
	reach(t, h, task)
}

// flush removes the guard's tables as often as they come, until the test ends.
func flush(t *testing.T, h *host) {
	ctx, cancel := context.WithCancel(t.Context())
	var flushing sync.WaitGroup
	t.Cleanup(func() { cancel(); flushing.Wait() })
	flushing.Go(func() {
		err := h.Do(func() error {
			for ctx.Err() == nil {
				conn, err := nftables.New()
				if err != nil {
					return err
				}
				conn.FlushRuleset()
				if err := conn.Flush(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// A failure is an ADD that must fail.
type failure struct {
	spoil func(t *testing.T, h *host, task *testnet.Namespace)
	netns string // else the task's
	conf  string // else the usual
	code  uint
	want  string

	container  string // else c1
	unreadable bool   // the bindings file, as it must stay
}

// unroutable is a configuration with a route that the kernel refuses.
func unroutable() string {
	return strings.Replace(conf(), `"ecs-ipam"`, `"ecs-ipam", "ipv4-routes": [{"dst": "10.0.0.0/8", "gw": "10.9.9.9"}]`, 1)
}

func TestAddThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]failure{
		"the interface name is taken": {
			spoil: func(t *testing.T, _ *host, task *testnet.Namespace) {
				task.Sh(t, "ip link add eth0 type veth peer name peer")
			},
			code: types.ErrInternal, want: "eth0: the interface name is taken in the task's namespace",
		},
		"the namespace is missing": {
			netns: "/run/netns/none", code: types.ErrInvalidNetNS, want: `CNI_NETNS is "/run/netns/none": expected the path of a network namespace`,
		},
		"the namespace is a file": {
			netns: "/etc/passwd", code: types.ErrInvalidNetNS, want: `CNI_NETNS is "/etc/passwd"`,
		},
		"the host has an interface by the bridge's name": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.Sh(t, "ip link add ecs-bridge type veth peer name peer")
			},
			code: types.ErrInternal, want: "interface ecs-bridge is a veth: expected a bridge",
		},
		"the bridge has another gateway": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.Sh(t, "ip link add ecs-bridge type bridge; ip addr add 169.254.172.9/22 dev ecs-bridge")
			},
			code: types.ErrInternal, want: "bridge ecs-bridge has the address 169.254.172.9/22, whose subnet overlaps 169.254.172.1/22",
		},
		"the bindings file is damaged": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				if err := os.WriteFile(h.db, make([]byte, 1<<15), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			unreadable: true, code: cniedge.CodeDamaged, want: "run `ecs-resolver bindings repair`",
		},
		"the container's ID is too long to be remembered": {
			container: strings.Repeat("c", 250),
			code:      types.ErrInvalidEnvironmentVariables, want: "expected at most 205 bytes beside the network's name",
		},
		"another network's gateway": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.must(t, "ADD", "c0", testnet.T(t).Path(), strings.Replace(conf(), "ecs-task", "first", 1))
			},
			conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "bridge": "second-bridge",
				"ipam": {"type": "ecs-ipam", "ipv4-subnet": "169.254.172.0/22", "ipv4-gateway": "169.254.172.9", "ipv4-address": "169.254.172.1/22"}}`,
			code: cniedge.CodeAddrTaken, want: `169.254.172.1 is a gateway, first of network "first"`,
		},
		"the MTU is too small for IPv6": {
			conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "mtu": 1200, "ipam": {"type": "ecs-ipam", "ipv6-subnet": "fd00:ec2::/64"}}`,
			code: types.ErrInternal, want: "adding address fd00:ec2::1/64",
		},
		"the kernel refuses a route": {
			conf: unroutable(), code: types.ErrInternal, want: "adding route 10.0.0.0/8 via 10.9.9.9",
		},
		"the kernel refuses a route, and the guard's table is gone by then": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) { flush(t, h) },
			conf:  unroutable(), code: types.ErrInternal, want: "adding route 10.0.0.0/8 via 10.9.9.9",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f.leavesNothing(t)
		})
	}
}

func TestAddWhoseIPAMPluginFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]failure{
		"the IPAM plugin is missing": {
			conf: strings.Replace(conf(), "ecs-ipam", "none", 1),
			code: types.ErrInvalidNetworkConfig, want: `ipam.type is "none": expected the name of a program in CNI_PATH`,
		},
		"the IPAM plugin refuses": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "other-ipam", `echo '{"code": 100, "msg": "the pool is full"}'; exit 1`)
			},
			conf: otherIPAM(), code: cniedge.CodePoolFull, want: "ADD of IPAM plugin other-ipam: the pool is full",
		},
		"the IPAM plugin is killed when it has taken an address": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "other-ipam", bin+`/ecs-ipam >/dev/null; [ "$CNI_COMMAND" = DEL ] || kill -9 $$`)
			},
			conf: otherIPAM(), code: types.ErrInternal, want: "ADD of IPAM plugin other-ipam: it ended without an answer (signal: killed)",
		},
		"the IPAM plugin gives no address": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "other-ipam", `[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.1.0"}'`)
			},
			conf: otherIPAM(), code: types.ErrInternal, want: "answer of IPAM plugin other-ipam: it has no address: expected one at least",
		},
		"the IPAM plugin gives no gateway": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "other-ipam", `[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}'`)
			},
			conf: otherIPAM(), code: types.ErrInternal, want: "the address 10.9.0.2/24 has no gateway",
		},
		"the IPAM plugin talks nonsense": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "other-ipam", bin+`/ecs-ipam >/dev/null; echo nonsense`)
			},
			conf: otherIPAM(), code: types.ErrInternal, want: "reading a result of CNI 1.1.0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f.leavesNothing(t)
		})
	}
}

// leavesNothing checks that the ADD fails so, and that host, task and file are as before.
func (f failure) leavesNothing(t *testing.T) {
	t.Helper()
	h, task := newHost(t), testnet.T(t)
	if f.spoil != nil {
		f.spoil(t, h, task)
	}
	if f.netns == "" {
		f.netns = task.Path()
	}
	if f.conf == "" {
		f.conf = conf()
	}
	if f.container == "" {
		f.container = "c1"
	}
	look := h.things
	if f.unreadable {
		look = h.network
	}
	file, _ := os.ReadFile(h.db) // nil if there is none
	before, inTask := look(t), task.Sh(t, "ip addr; ip route; ip -6 route")
	h.refused(t, "ADD", f.container, f.netns, f.conf, f.code, f.want)
	if diff := cmp.Diff(before, look(t)); diff != "" {
		t.Errorf("what is left (-before +after):\n%s", diff)
	}
	if after, err := os.ReadFile(h.db); f.unreadable && (err != nil || !bytes.Equal(after, file)) {
		t.Errorf("the bindings file was changed (%v)", err)
	}
	if after := task.Sh(t, "ip addr; ip route; ip -6 route"); after != inTask {
		t.Errorf("the task has\n%s\nand had\n%s", after, inTask)
	}
}

func TestAddIsRefusedOnTheHostItself(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	before := h.things(t)
	h.refused(t, "ADD", "c1", h.Path(), conf(), types.ErrInvalidNetNS, "the plugin's own network namespace")
	h.left(t, before)
}

// What earlier plugins of the chain have returned stands as it is, before what is ours.
func TestChainedAfterAnotherPlugin(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	prev := `{"cniVersion": "1.1.0",
		"interfaces": [{"name": "veth9"}, {"name": "eni0", "sandbox": "/x"}],
		"ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1}],
		"routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}],
		"dns": {"nameservers": ["10.1.2.2"]}}`
	result := h.must(t, "ADD", "c1", task.Path(), conf(`"prevResult": `+prev))
	want := &current.Result{}
	if err := json.Unmarshal([]byte(prev), want); err != nil {
		t.Fatal(err)
	}
	three := 3 + 1
	want.Interfaces = append(want.Interfaces,
		&current.Interface{Name: "ecs-bridge", Mac: "0a:58:a9:fe:aa:02"},
		&current.Interface{Name: vethOf("c1"), Mac: result.Interfaces[3].Mac, Mtu: 1500},
		&current.Interface{Name: "eth0", Mac: "0a:58:a9:fe:ac:02", Mtu: 1500, Sandbox: task.Path()},
	)
	_, subnet, _ := net.ParseCIDR("169.254.172.0/22")
	want.IPs = append(want.IPs, &current.IPConfig{Interface: &three, Address: net.IPNet{IP: net.IP{169, 254, 172, 2}.To16(), Mask: subnet.Mask}, Gateway: net.IP{169, 254, 172, 1}.To16()})
	_, endpoint, _ := net.ParseCIDR("169.254.170.2/32")
	want.Routes = append(want.Routes, &types.Route{Dst: *endpoint, GW: net.IP{169, 254, 172, 1}.To16()})
	if diff := cmp.Diff(want, result, cmp.Comparer(net.IP.Equal)); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if b := h.bindings(t)[0]; len(b.TaskAddrs) != 1 || b.TaskAddrs[0].String() != "10.1.2.3" {
		t.Errorf("the binding knows the addresses %v of the task", b.TaskAddrs)
	}
	all, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	task.Sh(t, "ip link add eni0 type veth peer name peer; ip addr add 10.1.2.3/24 dev eni0; ip link set eni0 up; ip link set peer up; ip route add default via 10.1.2.1")
	h.must(t, "CHECK", "c1", task.Path(), conf(`"prevResult": `+string(all)))
}
