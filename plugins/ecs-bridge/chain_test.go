package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
)

// ours is the interface name of our attachment behind another plugin's eth0.
const ours = "ecs-eth0"

// chain calls plugins one after the other for a task, as a runtime does: each with what the
// one before answered.
type chain struct {
	h    *host
	task *testnet.Namespace
	prev string
}

// add runs an ADD, and returns the configuration that a CHECK of it has.
func (c *chain) add(t *testing.T, program, ifname, conf string) (checked string) {
	t.Helper()
	if c.prev != "" {
		conf = strings.TrimSuffix(conf, "}") + `, "prevResult": ` + c.prev + `}`
	}
	result, err := c.call("ADD", program, ifname, conf)
	if err != nil {
		t.Fatal(err)
	}
	all, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	before := c.prev
	c.prev = string(all)
	if before != "" {
		conf = strings.TrimSuffix(conf, `, "prevResult": `+before+`}`) + "}"
	}
	return strings.TrimSuffix(conf, "}") + `, "prevResult": ` + c.prev + `}`
}

func (c *chain) call(verb, program, ifname, conf string) (*current.Result, error) {
	call := c.h.call(verb, "c1", c.task.Path(), conf)
	call.Program, call.IfName = filepath.Join(bin, program), ifname
	return c.h.run(call)
}

// bridged is a configuration of another plugin that comes first, with these routes.
func bridged(t *testing.T, routes string) string {
	return `{"cniVersion": "1.1.0", "name": "first", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
		"ipam": {"type": "host-local", "dataDir": "` + t.TempDir() + `", "ranges": [[{"subnet": "10.5.0.0/24"}]], "routes": ` + routes + `}}`
}

// behind is a configuration of ours with host-local's addresses and these routes.
func behind(t *testing.T, routes string) string {
	return `{"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge", "guard": "off",
		"ipam": {"type": "host-local", "dataDir": "` + t.TempDir() + `", "ranges": [[{"subnet": "10.66.0.0/24"}]], "routes": ` + routes + `}}`
}

// withRoutes is a configuration of ours with these routes of ecs-ipam's.
func withRoutes(routes string) string {
	return strings.Replace(conf(), `"ecs-ipam"`, `"ecs-ipam", "ipv4-routes": `+routes, 1)
}

// A CHECK after a chain's ADD looks for what is ours: whatever earlier plugins have
// returned, or the task has of them, is theirs to check.
func TestCheckOfAChain(t *testing.T) {
	t.Parallel()
	const endpoint = `{"dst": "169.254.170.2/32"}`
	tests := map[string]struct {
		first, ours string // routes of the plugin before, and our configuration
		spoil, want string // a line in the task, and what CHECK then says
	}{
		"the plugin before has a default route": {first: `[{"dst": "0.0.0.0/0"}]`, ours: conf()},
		"and by its own gateway":                {first: `[{"dst": "0.0.0.0/0", "gw": "10.5.0.1"}]`, ours: conf()},
		"and of IPv6 as well":                   {first: `[{"dst": "0.0.0.0/0"}]`, ours: strings.Replace(conf(), `"ecs-ipam"`, `"ecs-ipam", "ipv4-subnet": "169.254.172.0/22", "ipv6-subnet": "fd00:ec2::/64", "ipv6-routes": [{"dst": "::/0"}]`, 1)},
		"another IPAM plugin gives our address": {first: `[{"dst": "0.0.0.0/0"}]`, ours: behind(t, `[`+endpoint+`]`)},
		"a default route with a metric":         {first: `[{"dst": "0.0.0.0/0"}]`, ours: behind(t, `[`+endpoint+`, {"dst": "0.0.0.0/0", "gw": "10.66.0.1", "priority": 500}]`)},
		"a destination that is another's":       {first: `[{"dst": "0.0.0.0/0"}]`, ours: withRoutes(`[` + endpoint + `, {"dst": "0.0.0.0/0"}]`)},
		"the endpoint's route is another's":     {first: `[{"dst": "169.254.170.2/32"}]`, ours: conf()},
		"what is not ours is gone":              {first: `[{"dst": "0.0.0.0/0"}]`, ours: conf(), spoil: "ip route del default; ip addr flush dev eth0; ip link set eth0 down"},
		"the route to the gateway is as the first versions made it": {
			first: `[]`, ours: conf(), spoil: "ip route replace 169.254.172.1/32 dev " + ours + " scope link",
		},
		"our route is gone": {
			first: `[{"dst": "0.0.0.0/0"}]`, ours: conf(), spoil: "ip route del 169.254.170.2", want: "lacks the route 169.254.170.2/32 via 169.254.172.1",
		},
		"our route with a metric is gone": {
			first: `[{"dst": "0.0.0.0/0"}]`, ours: behind(t, `[{"dst": "0.0.0.0/0", "gw": "10.66.0.1", "priority": 500}]`),
			spoil: "ip route del default metric 500", want: "lacks the route 0.0.0.0/0 via 10.66.0.1",
		},
		"our route has another next hop": {
			first: `[]`, ours: conf(), spoil: "ip route replace 169.254.170.2/32 via 169.254.172.9 onlink dev " + ours, want: "lacks the route 169.254.170.2/32 via 169.254.172.1",
		},
		"the instance's metadata is no longer blocked": {
			first: `[]`, ours: conf(`"blockInstanceMetadata": true`), spoil: "ip route del blackhole 169.254.169.254; ip route add 169.254.169.254/32 dev eth0", want: "lacks the route blackhole 169.254.169.254/32",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := chain{h: newHost(t), task: testnet.T(t)}
			c.add(t, "bridge", "eth0", bridged(t, test.first))
			checked := c.add(t, "ecs-bridge", ours, test.ours)
			if _, err := c.call("CHECK", "ecs-bridge", ours, checked); err != nil {
				t.Fatal("right after ADD: ", err)
			}
			if test.spoil == "" {
				return
			}
			c.task.Sh(t, test.spoil)
			_, err := c.call("CHECK", "ecs-bridge", ours, checked)
			if test.want != "" {
				testnet.Refused(t, err, cniedge.CodeMismatch, test.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// Two of our own attachments of a task, alone or one behind the other: what the first has a
// route to already, the second has none to.
func TestCheckOfTwoOfOurs(t *testing.T) {
	t.Parallel()
	second := `{"cniVersion": "1.1.0", "name": "second", "bridge": "second-bridge",
		"ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.77.0.0/24"}}`
	for name, test := range map[string]struct {
		second  string
		chained bool
	}{
		"of two subnets":               {second, false},
		"of two subnets, in one chain": {second, true},
		"of one network":               {conf(), false},
		"of one network, in one chain": {conf(), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := chain{h: newHost(t), task: testnet.T(t)}
			checked := map[string]string{"eth0": c.add(t, "ecs-bridge", "eth0", conf())}
			if !test.chained {
				c.prev = ""
			}
			checked["eth1"] = c.add(t, "ecs-bridge", "eth1", test.second)
			for ifname, conf := range checked {
				if _, err := c.call("CHECK", "ecs-bridge", ifname, conf); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// The task's interface is the one in its namespace, by whichever path, and not another of
// that name.
func TestCheckFindsTheTasksInterface(t *testing.T) {
	t.Parallel()
	h, task, other := newHost(t), testnet.T(t), testnet.T(t)
	result := h.must(t, "ADD", "c1", task.Path(), conf())
	result.Interfaces = append([]*current.Interface{{Name: "eth0", Sandbox: other.Path()}, {Name: "eth0"}}, result.Interfaces...)
	for _, ip := range result.IPs {
		*ip.Interface += 2
	}
	all, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	checked := conf(`"prevResult": ` + string(all))
	h.must(t, "CHECK", "c1", task.Path(), checked)
	again, err := testnet.Open(task.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	h.must(t, "CHECK", "c1", again.Path(), checked)
	h.refused(t, "CHECK", "c1", testnet.T(t).Path(), checked, cniedge.CodeMismatch, "prevResult has no interface eth0 in /proc")
}
