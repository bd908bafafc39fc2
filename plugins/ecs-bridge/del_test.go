package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/dev/testnet"
)

func TestDelOfWhatIsPartlyGone(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, h *host, task *testnet.Namespace) (netns string){
		"all is there": func(_ *testing.T, _ *host, task *testnet.Namespace) string { return task.Path() },
		"the runtime has lost the namespace's path": func(*testing.T, *host, *testnet.Namespace) string { return "" },
		"the namespace is gone": func(t *testing.T, _ *host, task *testnet.Namespace) string {
			path := task.Path()
			if err := task.Close(); err != nil {
				t.Fatal(err)
			}
			return path
		},
		"the task has removed its interface": func(t *testing.T, _ *host, task *testnet.Namespace) string {
			task.Sh(t, "ip link del eth0")
			return task.Path()
		},
		"the task has another interface by that name": func(t *testing.T, _ *host, task *testnet.Namespace) string {
			task.Sh(t, "ip link set eth0 name mine")
			return task.Path()
		},
		"the bridge is gone": func(t *testing.T, h *host, task *testnet.Namespace) string {
			h.Sh(t, "ip link del ecs-bridge")
			return task.Path()
		},
		"the ruleset is flushed": func(t *testing.T, h *host, task *testnet.Namespace) string {
			h.Sh(t, "nft flush ruleset")
			return task.Path()
		},
		"the veth is gone": func(t *testing.T, h *host, task *testnet.Namespace) string {
			h.Sh(t, "ip link del "+vethOf("c1"))
			return task.Path()
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, task := newHost(t), testnet.T(t)
			before := h.things(t)
			h.must(t, "ADD", "c1", task.Path(), conf())
			netns := spoil(t, h, task)
			h.must(t, "DEL", "c1", netns, conf())
			h.left(t, before)
			h.must(t, "DEL", "c1", netns, conf())
		})
	}
}

func TestDelLeavesWhatIsNotOurs(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	task.Sh(t, "ip link add eth0 type veth peer name peer")
	h.Sh(t, "ip link add "+vethOf("c1")+" type veth peer name peer")
	before := h.things(t)
	h.must(t, "DEL", "c1", task.Path(), conf())
	h.left(t, before)
	task.Sh(t, "ip link show eth0")
}

func TestDelReportsTheIPAMPluginsFailure(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	h.must(t, "ADD", "c1", task.Path(), conf())
	h.plugin(t, "other-ipam", `echo '{"code": 11, "msg": "locked"}'; exit 1`)
	h.refused(t, "DEL", "c1", task.Path(), otherIPAM(), types.ErrTryAgainLater, "DEL of IPAM plugin other-ipam: locked")
	if len(h.bindings(t)) != 1 {
		t.Error("the binding is gone")
	}
}

// A runtime must not do both at once, and one that lost patience with the ADD may all the
// same: the DEL after it leaves nothing.
func TestDelBesideAdd(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *host) {
		task := testnet.T(t)
		before := h.things(t)
		for round := range testnet.Soak(60, 1000) {
			name := fmt.Sprintf("c%d", round)
			var both sync.WaitGroup
			both.Go(func() { _, _ = h.run(h.call("ADD", name, task.Path(), conf())) }) // it may succeed or not
			both.Go(func() { _, _ = h.run(h.call("DEL", name, task.Path(), conf())) })
			both.Wait()
			h.must(t, "DEL", name, task.Path(), conf())
		}
		h.left(t, before)
	})
}

// What only the IPAM plugin can free, DEL says so and goes on saying, and all else is gone.
func TestDelWithoutTheIPAMPlugin(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	h.plugin(t, "other-ipam", started())
	before := h.things(t)
	h.must(t, "ADD", "c1", task.Path(), otherIPAM())
	installed := h.path
	h.path = t.TempDir()
	for range 2 {
		h.refused(t, "DEL", "c1", task.Path(), otherIPAM(), types.ErrInvalidNetworkConfig, `ipam.type is "other-ipam": expected the name of a program in CNI_PATH`)
		if n := h.network(t); n.Ports != "" || strings.Contains(n.Chains, "in-ecsv") || n.Neighbours != "" {
			t.Errorf("left: %+v", n)
		}
	}
	h.refused(t, "GC", "", "", otherIPAM(`"cni.dev/valid-attachments": []`), types.ErrInvalidNetworkConfig, `ipam.type is "other-ipam"`)
	h.path = installed
	h.must(t, "DEL", "c1", task.Path(), otherIPAM())
	h.left(t, before)
}

// The ECS agent takes the interface away by a DEL of ecs-bridge without `ipam`, and then
// frees the address by one of ecs-ipam itself.
func TestDelAsTheECSAgentDoes(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	keys := func(typ, more string) string {
		return `{"cniVersion": "0.3.0", "name": "ecs-task-network", "type": "` + typ + `"` + more + `}`
	}
	ipam := `, "ipam": {"type": "ecs-ipam", "id": "pause", "ipv4-subnet": "169.254.172.0/22", "ipv4-routes": [{"dst": "169.254.170.2/32"}]}`
	result := h.must(t, "ADD", "pause", task.Path(), keys("ecs-bridge", `, "bridge": "ecs-bridge", "isGateway": false, "mtu": 0`+ipam))
	h.must(t, "DEL", "pause", task.Path(), keys("ecs-bridge", `, "bridge": "ecs-bridge", "isGateway": false, "mtu": 0, "ipam": {}`))
	if n := h.things(t); n.Ports != "" || len(n.Bindings) != 1 {
		t.Errorf("after DEL of ecs-bridge: %+v", n)
	}
	free := h.call("DEL", "pause", task.Path(), keys("ecs-ipam", strings.Replace(ipam, `"id"`, `"ipv4-address": "`+address(t, result)+`", "id"`, 1)))
	free.Program = filepath.Join(bin, "ecs-ipam")
	if _, err := h.run(free); err != nil {
		t.Fatal(err)
	}
	h.left(t, before)
}
