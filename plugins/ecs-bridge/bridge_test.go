package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/rogpeppe/go-internal/testscript"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/link"
)

// The stories are told on a host of their own: $HOST and $TASK are network namespaces.
func TestScripts(t *testing.T) {
	testnet.Need(t)
	t.Parallel()
	scripts, err := filepath.Glob("../../testdata/script/bridge*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	testscript.Run(t, testscript.Params{Files: scripts, Setup: func(env *testscript.Env) error {
		for _, name := range []string{"HOST", "TASK"} {
			ns, err := testnet.New()
			if err != nil {
				return err
			}
			env.Defer(func() { ns.Close() })
			env.Setenv(name, ns.Path())
		}
		env.Setenv("CNI_PATH", bin)
		return nil
	}})
}

// A runtime's way: ADD, CHECK and DEL by cnitool, in every version of CNI.
func TestCnitoolInEveryVersion(t *testing.T) {
	t.Parallel()
	for _, version := range cniedge.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			h, task, dir := newHost(t), testnet.T(t), t.TempDir()
			network := strings.Replace(conf(), "1.1.0", version, 1)
			if err := os.WriteFile(filepath.Join(dir, "net.conf"), []byte(network), 0o600); err != nil {
				t.Fatal(err)
			}
			before := h.things(t)
			tool := func(verb string) string {
				return sh(t, h.Namespace, fmt.Sprintf("IPAM_DB_PATH=%s CNI_PATH=%s NETCONFPATH=%s %s/cnitool %s ecs-task %s", h.db, h.path, dir, bin, verb, task.Path()))
			}
			for _, want := range []string{"169.254.172.2", "169.254.172.3"} {
				var result struct {
					CNIVersion string `json:"cniVersion"`
				}
				out := tool("add")
				if err := json.Unmarshal([]byte(out), &result); err != nil || result.CNIVersion != version {
					t.Errorf("result of CNI %q, %v: %s", result.CNIVersion, err, out)
				}
				if got := sh(t, task, `ip -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4`); got != want+"/22" {
					t.Errorf("eth0 has %q, want %s/22", got, want)
				}
				if version != "0.3.0" && version != "0.3.1" { // which have no CHECK
					tool("check")
				}
				tool("del")
				h.left(t, before)
				tool("del")
			}
		})
	}
}

// With the configurations of the README of AWS's plugin the task has what it has there.
func TestConfigurationsOfAWS(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ file, addrs, routes string }{
		"IPv4": {
			file: "bridge-aws-ipv4.json", addrs: "169.254.172.2/22",
			routes: "169.254.170.2 via 169.254.172.1\n169.254.172.1 scope link",
		},
		"IPv6": {
			file: "bridge-aws-ipv6.json", addrs: "2001:db8::2/64",
			routes: "2001:db8::1 metric 1024\nfd00:ec2::254 via 2001:db8::1 metric 1024",
		},
		"both": {
			file: "bridge-aws-dual.json", addrs: "169.254.172.2/22\n2001:db8::2/64",
			routes: "169.254.170.2 via 169.254.172.1\n169.254.172.1 scope link\n2001:db8::1 metric 1024\nfd00:ec2::254 via 2001:db8::1 metric 1024",
		},
		"a subnet on the link, no instance metadata": {
			file: "bridge-aws-daemon.json", addrs: "169.254.172.2/22",
			routes: "169.254.170.2 via 169.254.172.1\n169.254.172.0/24 scope link\n169.254.172.1 scope link\nblackhole 169.254.169.254",
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
			if got := sh(t, task, `ip -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4`); got != test.addrs {
				t.Errorf("addresses\n%s\nwant\n%s", got, test.addrs)
			}
			got := sh(t, task, `(ip route show; ip -6 route show) | sed -e 's/ dev [a-z0-9]*//; s/ proto static//; s/ pref medium//; s/ onlink//; s/ *$//' | sort`)
			if got != test.routes {
				t.Errorf("routes\n%s\nwant\n%s", got, test.routes)
			}
			h.must(t, "DEL", "c1", task.Path(), string(aws))
			h.left(t, before)
		})
	}
}

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
			sh(t, task, "ip link del eth0")
			return task.Path()
		},
		"the task has another interface by that name": func(t *testing.T, _ *host, task *testnet.Namespace) string {
			sh(t, task, "ip link set eth0 name mine")
			return task.Path()
		},
		"the bridge is gone": func(t *testing.T, h *host, task *testnet.Namespace) string {
			sh(t, h.Namespace, "ip link del ecs-bridge")
			return task.Path()
		},
		"the ruleset is flushed": func(t *testing.T, h *host, task *testnet.Namespace) string {
			sh(t, h.Namespace, "nft flush ruleset")
			return task.Path()
		},
		"the veth is gone": func(t *testing.T, h *host, task *testnet.Namespace) string {
			sh(t, h.Namespace, "ip link del "+vethOf("c1"))
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
	sh(t, task, "ip link add eth0 type veth peer name peer")
	sh(t, h.Namespace, "ip link add "+vethOf("c1")+" type veth peer name peer")
	before := h.things(t)
	h.must(t, "DEL", "c1", task.Path(), conf())
	h.left(t, before)
	sh(t, task, "ip link show eth0")
}

func TestDelReportsTheIPAMPluginsFailure(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	h.must(t, "ADD", "c1", task.Path(), conf())
	h.plugin(t, "ecs-ipam", `echo '{"code": 11, "msg": "locked"}'; exit 1`)
	h.refused(t, "DEL", "c1", task.Path(), conf(), types.ErrTryAgainLater, "DEL of IPAM plugin ecs-ipam: locked")
	if len(h.bindings(t)) != 1 {
		t.Error("the binding is gone")
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

// reach asks the endpoint from inside a task.
func reach(t *testing.T, h *host, task *testnet.Namespace) {
	t.Helper()
	if h.endpoint == nil {
		// It stays, since the address would be in use for a moment after it is closed: each
		// program that is being started has a copy of the socket until it runs.
		l, err := h.Listen("tcp", "169.254.170.2:80")
		if err != nil {
			t.Fatal(err)
		}
		h.endpoint = l
		t.Cleanup(func() { l.Close() })
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c, err := task.DialContext(ctx, "tcp", "169.254.170.2:80")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
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

func TestAddThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	unroutable := strings.Replace(conf(), `"ecs-ipam"`, `"ecs-ipam", "ipv4-routes": [{"dst": "10.0.0.0/8", "gw": "10.9.9.9"}]`, 1)
	tests := map[string]struct {
		spoil func(t *testing.T, h *host, task *testnet.Namespace)
		netns string // else the task's
		conf  string // else the usual
		code  uint
		want  string

		container  string // else c1
		unreadable bool   // the bindings file, as it must stay
	}{
		"the interface name is taken": {
			spoil: func(t *testing.T, _ *host, task *testnet.Namespace) {
				sh(t, task, "ip link add eth0 type veth peer name peer")
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
				sh(t, h.Namespace, "ip link add ecs-bridge type veth peer name peer")
			},
			code: types.ErrInternal, want: "interface ecs-bridge is a veth: expected a bridge",
		},
		"the bridge has another gateway": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				sh(t, h.Namespace, "ip link add ecs-bridge type bridge; ip addr add 169.254.172.9/22 dev ecs-bridge")
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
			conf: unroutable, code: types.ErrInternal, want: "adding route 10.0.0.0/8 via 10.9.9.9",
		},
		"the kernel refuses a route, and the guard's table is gone by then": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) { flush(t, h) },
			conf:  unroutable, code: types.ErrInternal, want: "adding route 10.0.0.0/8 via 10.9.9.9",
		},
		"the IPAM plugin is missing": {
			conf: strings.Replace(conf(), "ecs-ipam", "none", 1),
			code: types.ErrInvalidNetworkConfig, want: `ipam.type is "none": expected the name of a program in CNI_PATH`,
		},
		"the IPAM plugin refuses": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "ecs-ipam", `echo '{"code": 100, "msg": "the pool is full"}'; exit 1`)
			},
			code: cniedge.CodePoolFull, want: "ADD of IPAM plugin ecs-ipam: the pool is full",
		},
		"the IPAM plugin is killed when it has taken an address": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "ecs-ipam", bin+`/ecs-ipam >/dev/null; [ "$CNI_COMMAND" = DEL ] || kill -9 $$`)
			},
			code: types.ErrInternal, want: "ADD of IPAM plugin ecs-ipam: it ended without an answer (signal: killed)",
		},
		"the IPAM plugin gives no address": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "ecs-ipam", `[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.1.0"}'`)
			},
			code: types.ErrInternal, want: "answer of IPAM plugin ecs-ipam: it has no address: expected one at least",
		},
		"the IPAM plugin gives no gateway": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "ecs-ipam", `[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}'`)
			},
			code: types.ErrInternal, want: "the address 10.9.0.2/24 has no gateway",
		},
		"the IPAM plugin talks nonsense": {
			spoil: func(t *testing.T, h *host, _ *testnet.Namespace) {
				h.plugin(t, "ecs-ipam", bin+`/ecs-ipam >/dev/null; echo nonsense`)
			},
			code: types.ErrInternal, want: "reading a result of CNI 1.1.0",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, task := newHost(t), testnet.T(t)
			if test.spoil != nil {
				test.spoil(t, h, task)
			}
			if test.netns == "" {
				test.netns = task.Path()
			}
			if test.conf == "" {
				test.conf = conf()
			}
			if test.container == "" {
				test.container = "c1"
			}
			look := h.things
			if test.unreadable {
				look = h.network
			}
			file, _ := os.ReadFile(h.db) // nil if there is none
			before, inTask := look(t), sh(t, task, "ip addr; ip route; ip -6 route")
			h.refused(t, "ADD", test.container, test.netns, test.conf, test.code, test.want)
			if diff := cmp.Diff(before, look(t)); diff != "" {
				t.Errorf("what is left (-before +after):\n%s", diff)
			}
			if after, err := os.ReadFile(h.db); test.unreadable && (err != nil || !bytes.Equal(after, file)) {
				t.Errorf("the bindings file was changed (%v)", err)
			}
			if after := sh(t, task, "ip addr; ip route; ip -6 route"); after != inTask {
				t.Errorf("the task has\n%s\nand had\n%s", after, inTask)
			}
		})
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
	sh(t, task, "ip link add eni0 type veth peer name peer; ip addr add 10.1.2.3/24 dev eni0; ip link set eni0 up; ip link set peer up; ip route add default via 10.1.2.1")
	h.must(t, "CHECK", "c1", task.Path(), conf(`"prevResult": `+string(all)))
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		onHost, inTask string
		code           uint
		want           string
	}{
		"the address":        {inTask: "ip addr flush dev eth0", code: cniedge.CodeMismatch, want: "eth0 lacks the address 169.254.172.2/22"},
		"the route":          {inTask: "ip route del 169.254.170.2", code: cniedge.CodeMismatch, want: "lacks the route 169.254.170.2/32 via 169.254.172.1"},
		"the task's MAC":     {inTask: "ip link set eth0 address 02:00:00:00:00:01", code: cniedge.CodeMismatch, want: "eth0 has the MAC 02:00:00:00:00:01"},
		"the veth":           {onHost: "ip link del " + vethOf("c1"), code: cniedge.CodeMismatch, want: "veth " + vethOf("c1") + " is missing"},
		"the veth is down":   {onHost: "ip link set " + vethOf("c1") + " down", code: cniedge.CodeMismatch, want: "veth " + vethOf("c1") + " is down"},
		"the bridge port":    {onHost: "ip link set " + vethOf("c1") + " nomaster", code: cniedge.CodeMismatch, want: "is not a port of ecs-bridge"},
		"the bridge":         {onHost: "ip link del ecs-bridge", code: cniedge.CodeMismatch, want: "ecs-bridge"},
		"the gateway":        {onHost: "ip addr del 169.254.172.1/22 dev ecs-bridge", code: cniedge.CodeMismatch, want: "bridge ecs-bridge lacks the address 169.254.172.1/22"},
		"the endpoint":       {onHost: "ip addr del 169.254.170.2/32 dev ecs-bridge", code: cniedge.CodeMismatch, want: "bridge ecs-bridge lacks the address 169.254.170.2/32"},
		"the guard's chain":  {onHost: "nft flush ruleset", code: cniedge.CodeMismatch, want: "chain"},
		"the port's setting": {onHost: "bridge link set dev " + vethOf("c1") + " isolated off", code: cniedge.CodeMismatch, want: "isolated"},
		"the neighbour":      {onHost: "ip neigh del 169.254.172.2 dev ecs-bridge", code: cniedge.CodeMismatch, want: "169.254.172.2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, task := newHost(t), testnet.T(t)
			result, err := json.Marshal(h.must(t, "ADD", "c1", task.Path(), conf()))
			if err != nil {
				t.Fatal(err)
			}
			checked := conf(`"prevResult": ` + string(result))
			h.must(t, "CHECK", "c1", task.Path(), checked)
			sh(t, h.Namespace, test.onHost)
			sh(t, task, test.inTask)
			h.refused(t, "CHECK", "c1", task.Path(), checked, test.code, test.want)
		})
	}
}

func TestCheckPassesTheBindingOn(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	result, err := json.Marshal(h.must(t, "ADD", "c1", task.Path(), conf()))
	if err != nil {
		t.Fatal(err)
	}
	ipam := exec.Command(filepath.Join(bin, "ecs-ipam"))
	ipam.Env = h.command("DEL", "c1", task.Path(), "").Env
	ipam.Stdin = strings.NewReader(conf())
	if err := h.Run(ipam); err != nil {
		t.Fatal(err)
	}
	h.refused(t, "CHECK", "c1", task.Path(), conf(`"prevResult": `+string(result)), cniedge.CodeMismatch, "no binding")
	h.refused(t, "CHECK", "c1", task.Path(), conf(), types.ErrInvalidNetworkConfig, "prevResult is missing")
}

func TestGCKeepsWhatIsValid(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	other := strings.Replace(conf(), "ecs-task", "another", 1)
	tasks := make(map[string]*testnet.Namespace)
	for i := range 8 {
		name := fmt.Sprintf("c%d", i)
		tasks[name] = testnet.T(t)
		h.must(t, "ADD", name, tasks[name].Path(), conf())
	}
	task := testnet.T(t)
	h.must(t, "ADD", "c0", task.Path(), other)
	sh(t, h.Namespace, "ip link add ecsv-mine type veth peer name peer")

	var valid []types.GCAttachment
	for i := range 4 {
		valid = append(valid, types.GCAttachment{ContainerID: fmt.Sprintf("c%d", i), IfName: "eth0"})
	}
	list, err := json.Marshal(valid)
	if err != nil {
		t.Fatal(err)
	}
	h.must(t, "GC", "", "", conf()) // without a list there is nothing to go by
	if n := len(h.bindings(t)); n != 9 {
		t.Errorf("without a list %d of 9 bindings are kept", n)
	}
	h.must(t, "GC", "", "", conf(`"cni.dev/valid-attachments": `+string(list)))
	for i := range 8 {
		name := fmt.Sprintf("c%d", i)
		if i < 4 {
			reach(t, h, tasks[name])
		} else if out := sh(t, tasks[name], "ip -o link"); strings.Contains(out, "eth0") {
			t.Errorf("%s has its interface still", name)
		}
	}
	reach(t, h, task)
	after := h.things(t)
	if n := strings.Count(after.Chains, "in-ecsv"); n != 5 || len(after.Bindings) != 5 || strings.Count(after.Neighbours, "PERMANENT") != 5 {
		t.Errorf("5 of 9 were valid: %+v", after)
	}
	sh(t, h.Namespace, "ip link show ecsv-mine")
}

// What is added while a GC runs is not on its list, and is in use: neither plugin takes it
// away, although the IPAM plugin starts after it was added.
func TestGCBesideAdd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const n = 6
	tasks := make(map[string]*testnet.Namespace)
	add := func(name string) {
		tasks[name] = testnet.T(t)
		h.must(t, "ADD", name, tasks[name].Path(), conf())
	}
	var valid []types.GCAttachment
	for i := range n {
		name := fmt.Sprintf("old%d", i)
		add(name)
		if i%2 == 0 {
			valid = append(valid, types.GCAttachment{ContainerID: name, IfName: "eth0"})
		}
	}
	list, err := json.Marshal(valid)
	if err != nil {
		t.Fatal(err)
	}
	gc := h.command("GC", "", "", "")
	gc.Stdin = nil
	stdin, err := gc.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(gc); err != nil {
		t.Fatal(err)
	}
	// It has begun once it reads, which it must before more than a pipe holds can be written.
	const pipeHolds = 64 << 10
	if _, err := stdin.Write(bytes.Repeat([]byte(" "), 2*pipeHolds)); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		add(fmt.Sprintf("new%d", i))
	}
	if _, err := io.WriteString(stdin, conf(`"cni.dev/valid-attachments": `+string(list))); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := gc.Wait(); err != nil {
		t.Fatal(err)
	}
	bound := make(map[string]bool)
	for _, b := range h.bindings(t) {
		bound[b.Container] = true
	}
	for i := range n {
		if old := fmt.Sprintf("old%d", i); bound[old] != (i%2 == 0) {
			t.Errorf("%s has its binding: %v", old, bound[old])
		} else if i%2 == 0 {
			reach(t, h, tasks[old])
		}
		if name := fmt.Sprintf("new%d", i); !bound[name] {
			t.Errorf("the binding of %s was freed", name)
		} else {
			reach(t, h, tasks[name])
		}
	}
}

// A runtime must not do both at once, and one that lost patience with the ADD may all the
// same: the DEL after it leaves nothing.
func TestDelBesideAdd(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	for round := range testnet.Soak(60, 1000) {
		name := fmt.Sprintf("c%d", round)
		var both sync.WaitGroup
		both.Go(func() { _, _ = h.call("ADD", name, task.Path(), conf()) }) // it may succeed or not
		both.Go(func() { _, _ = h.call("DEL", name, task.Path(), conf()) })
		both.Wait()
		h.must(t, "DEL", name, task.Path(), conf())
	}
	h.left(t, before)
}

// What only the IPAM plugin can free, DEL says so and goes on saying, and all else is gone.
func TestDelWithoutTheIPAMPlugin(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	h.must(t, "ADD", "c1", task.Path(), conf())
	installed := h.path
	h.path = t.TempDir()
	for range 2 {
		h.refused(t, "DEL", "c1", task.Path(), conf(), types.ErrInvalidNetworkConfig, `ipam.type is "ecs-ipam": expected the name of a program in CNI_PATH`)
		if n := h.network(t); n.Ports != "" || strings.Contains(n.Chains, "in-ecsv") || n.Neighbours != "" {
			t.Errorf("left: %+v", n)
		}
	}
	h.refused(t, "GC", "", "", conf(`"cni.dev/valid-attachments": []`), types.ErrInvalidNetworkConfig, `ipam.type is "ecs-ipam"`)
	h.path = installed
	h.must(t, "DEL", "c1", task.Path(), conf())
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
	cmd := h.command("DEL", "pause", task.Path(), "")
	cmd.Path = filepath.Join(bin, "ecs-ipam")
	cmd.Stdin = strings.NewReader(keys("ecs-ipam", strings.Replace(ipam, `"id"`, `"ipv4-address": "`+address(t, result)+`", "id"`, 1)))
	if _, err := h.answer(cmd); err != nil {
		t.Fatal(err)
	}
	h.left(t, before)
}

func TestGCFindsWhatKilledPluginsLeft(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	h.must(t, "ADD", "c1", task.Path(), conf())
	sh(t, h.Namespace, "ip link del "+vethOf("c1")) // chain, neighbour and binding stay
	h.must(t, "GC", "", "", conf(`"cni.dev/valid-attachments": []`))
	h.left(t, before)
}

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
				sh(t, h.Namespace, "ip link del ecs-bridge; ip link add ecs-bridge type veth peer name peer")
			},
			conf: conf(), code: types.ErrLimitedConnectivity, want: "1 attachments of network ecs-task are cut off: interface ecs-bridge is a veth",
		},
		"a bridge that is down, and two attachments": {
			spoil: func(t *testing.T, h *host) {
				h.must(t, "ADD", "c1", testnet.T(t).Path(), conf())
				h.must(t, "ADD", "c2", testnet.T(t).Path(), conf())
				sh(t, h.Namespace, "ip link set ecs-bridge down")
			},
			conf: conf(), code: types.ErrLimitedConnectivity, want: "2 attachments of network ecs-task are cut off: bridge ecs-bridge is down",
		},
		"no bridge, and an attachment": {
			spoil: func(t *testing.T, h *host) {
				h.must(t, "ADD", "c1", testnet.T(t).Path(), conf())
				sh(t, h.Namespace, "ip link del ecs-bridge")
			},
			conf: conf(), code: types.ErrLimitedConnectivity, want: "1 attachments of network ecs-task are cut off: looking up interface ecs-bridge",
		},
		"an interface by the bridge's name": {
			spoil: func(t *testing.T, h *host) {
				sh(t, h.Namespace, "ip link add ecs-bridge type veth peer name peer")
			},
			conf: conf(), want: "interface ecs-bridge is a veth",
		},
		"an IPAM plugin that cannot serve": {
			spoil: func(t *testing.T, h *host) {
				h.plugin(t, "ecs-ipam", `echo '{"code": 50, "msg": "no address is free"}'; exit 1`)
			},
			conf: conf(), want: "no address is free",
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
	sh(t, h.Namespace, "ip link add ecs-bridge type bridge")
	h.must(t, "STATUS", "", "", conf())
	task := testnet.T(t)
	h.must(t, "ADD", "c1", task.Path(), conf())
	h.must(t, "STATUS", "", "", conf())
	reach(t, h, task)
}

func TestStatusNamesTheMissingCapability(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	cmd := h.command("STATUS", "", "", conf())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	_, err := h.answer(cmd)
	var failure *types.Error
	if !errors.As(err, &failure) || failure.Code != types.ErrPluginNotAvailable || !strings.Contains(failure.Error(), "CAP_NET_ADMIN is missing") {
		t.Errorf("got %v", err)
	}
}

// Attachments at once: no failure, no duplicate, although the first ones race to make the
// bridge.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	before := h.things(t)
	const n = 64
	tasks := make([]*testnet.Namespace, n)
	for i := range tasks {
		tasks[i] = testnet.T(t)
	}
	results := make([]*current.Result, n)
	together(t, n, func(i int) (err error) {
		results[i], err = h.call("ADD", fmt.Sprintf("c%d", i), tasks[i].Path(), conf())
		return err
	})
	seen := make(map[string]int)
	for i, r := range results {
		addr := address(t, r)
		if other, ok := seen[addr]; ok {
			t.Errorf("tasks %d and %d have %s", i, other, addr)
		}
		seen[addr] = i
	}
	for _, i := range []int{0, n / 2, n - 1} {
		reach(t, h, tasks[i])
	}
	together(t, n, func(i int) error {
		_, err := h.call("DEL", fmt.Sprintf("c%d", i), tasks[i].Path(), conf())
		return err
	})
	h.left(t, before)
}

func together(t *testing.T, n int, do func(int) error) {
	t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = do(i) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestTwoNetworksOfOneTask(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	second := `{"cniVersion": "1.1.0", "name": "second", "bridge": "second-bridge", "guard": "source",
		"ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.77.0.0/24", "ipv4-routes": [{"dst": "10.78.0.0/16"}]}}`
	another := func(verb string) *exec.Cmd {
		cmd := h.command(verb, "c1", task.Path(), second)
		cmd.Env = append(cmd.Env, "CNI_IFNAME=eth1")
		return cmd
	}
	h.must(t, "ADD", "c1", task.Path(), conf())
	if _, err := h.answer(another("ADD")); err != nil {
		t.Fatal(err)
	}
	reach(t, h, task)
	l, err := h.Listen("tcp", "10.77.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c, err := task.DialContext(ctx, "tcp", "10.77.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	h.must(t, "DEL", "c1", task.Path(), conf())
	if _, err := h.answer(another("DEL")); err != nil {
		t.Fatal(err)
	}
	h.left(t, before)
}

// Subnets that do not overlap may share a bridge, whose MTU is the least of its ports'.
func TestTwoSubnetsOnOneBridge(t *testing.T) {
	t.Parallel()
	h, first, second := newHost(t), testnet.T(t), testnet.T(t)
	before := h.things(t)
	other := `{"cniVersion": "1.1.0", "name": "other", "mtu": 1400, "guard": "source",
		"ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.77.0.0/24"}}`
	h.must(t, "ADD", "c1", first.Path(), conf())
	result := h.must(t, "ADD", "c1", second.Path(), other)
	if got := address(t, result); got != "10.77.0.2/24" {
		t.Errorf("address %s", got)
	}
	reach(t, h, first)
	reach(t, h, second)
	mtu := func(ns *testnet.Namespace, link string) string {
		_, rest, _ := strings.Cut(sh(t, ns, "ip -o link show "+link), " mtu ")
		return strings.Fields(rest)[0]
	}
	if got := mtu(first, "eth0") + " " + mtu(second, "eth0") + " " + mtu(h.Namespace, "ecs-bridge"); got != "1500 1400 1400" {
		t.Errorf("the tasks and the bridge have MTUs of %s", got)
	}
	h.must(t, "GC", "", "", strings.TrimSuffix(other, "}")+`, "cni.dev/valid-attachments": []}`)
	reach(t, h, first)
	if got := mtu(h.Namespace, "ecs-bridge"); got != "1500" {
		t.Errorf("the bridge has an MTU of %s when the smaller port is gone", got)
	}
	h.must(t, "DEL", "c1", second.Path(), other)
	h.must(t, "DEL", "c1", first.Path(), conf())
	h.left(t, before)
}

// Of the name servers of earlier plugins and of the IPAM plugin, the first stand.
func TestNameServersOfTheIPAMPlugin(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.plugin(t, "ecs-ipam", `[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.1.0", "dns": {"nameservers": ["10.9.0.53"]},
		"ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]}'`)
	tests := map[string]struct{ conf, want string }{
		"alone":                       {conf(), "10.9.0.53"},
		"after a plugin with none":    {conf(`"prevResult": {"cniVersion": "1.1.0"}`), "10.9.0.53"},
		"after a plugin with its own": {conf(`"prevResult": {"cniVersion": "1.1.0", "dns": {"nameservers": ["10.1.0.53"]}}`), "10.1.0.53"},
	}
	for name, test := range tests {
		task := testnet.T(t)
		result := h.must(t, "ADD", "c1", task.Path(), test.conf)
		if got := strings.Join(result.DNS.Nameservers, " "); got != test.want {
			t.Errorf("%s: name servers %s, want %s", name, got, test.want)
		}
		h.must(t, "DEL", "c1", task.Path(), test.conf)
	}
}

// A second interface in the same network: the routes are the first one's.
func TestTwoInterfacesInOneNetwork(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	second := func(verb string) *exec.Cmd {
		cmd := h.command(verb, "c1", task.Path(), conf())
		cmd.Env = append(cmd.Env, "CNI_IFNAME=eth1")
		return cmd
	}
	h.must(t, "ADD", "c1", task.Path(), conf())
	if _, err := h.answer(second("ADD")); err != nil {
		t.Fatal(err)
	}
	reach(t, h, task)
	if _, err := h.answer(second("DEL")); err != nil {
		t.Fatal(err)
	}
	reach(t, h, task)
	h.must(t, "DEL", "c1", task.Path(), conf())
	h.left(t, before)
}

// Another IPAM plugin will do as well.
func TestHostLocalGivesTheAddress(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	local := `{"cniVersion": "1.0.0", "name": "ecs-task", "guard": "off",
		"ipam": {"type": "host-local", "dataDir": "` + t.TempDir() + `", "routes": [{"dst": "169.254.170.2/32"}],
			"ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]]}}`
	result := h.must(t, "ADD", "c1", task.Path(), local)
	if got := address(t, result); got != "10.66.0.2/24" || len(result.IPs) != 2 {
		t.Errorf("address %s of %v", got, result.IPs)
	}
	reach(t, h, task)
	h.must(t, "DEL", "c1", task.Path(), local)
	h.left(t, before)
}

// vethOf is the name of the host's end of a container's eth0 in the usual network.
func vethOf(container string) string {
	return link.HostName(attachment(container))
}
