package guard_test

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/guard"
	"taskmeta/internal/rtnl"
)

// guarded makes a host whose veth1 has the whole guard.
func guarded(t testing.TB) (ns *testnet.Namespace, p guard.Port) {
	t.Helper()
	ns, _ = host(t, "169.254.172.1/22", "fd00:ec2::172:1/112")
	p = port(guard.Strict, "169.254.172.2/22", "fd00:ec2::172:2/112")
	p.LinkIndex, p.BridgeIndex = index(t, ns, p.Link), index(t, ns, p.Bridge)
	on(t, ns, func(c *rtnl.Conn) error { return errors.Join(p.Install(c), p.Attach(c), p.Check(c)) })
	return ns, p
}

// entries lists what Install and Attach make that outlives the link.
func entries(t testing.TB, ns *testnet.Namespace) string {
	t.Helper()
	out := nft(t, ns, "list", "chains", "netdev")
	in(t, ns, func() error {
		neighbours, err := exec.Command("ip", "neigh", "show", "nud", "permanent").Output()
		for line := range strings.Lines(string(neighbours)) {
			if strings.Contains(line, "dev ecs-bridge") {
				out += line
			}
		}
		return err
	})
	return out
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ do, want string }{
		"the table":              {"nft flush ruleset", "chain in-veth1"},
		"the rules":              {"nft flush chain netdev ecs_guard in-veth1", "chain in-veth1"},
		"a rule of someone else": {"nft insert rule netdev ecs_guard in-veth1 accept", "chain in-veth1"},
		"isolation":              {"bridge link set dev veth1 isolated off", "isolated is 0, not 1"},
		"no learning":            {"bridge link set dev veth1 learning on", "learning is 1, not 0"},
		"the bridge":             {"ip link set veth1 nomaster", "not a port of a bridge"},
		"the MAC address":        {"bridge fdb del 0a:58:a9:fe:ac:02 dev veth1 master", "no sticky entry"},
		"the entry's stickiness": {"bridge fdb replace 0a:58:a9:fe:ac:02 dev veth1 master static", "no sticky entry"},
		"the neighbour":          {"ip neigh del 169.254.172.2 dev ecs-bridge", "no permanent neighbour 169.254.172.2"},
		"the IPv6 neighbour":     {"ip neigh replace fd00:ec2::172:2 lladdr 0a:58:00:00:00:01 dev ecs-bridge nud permanent", "no permanent neighbour fd00:ec2::172:2"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, p := guarded(t)
			args := strings.Fields(tt.do)
			in(t, ns, exec.Command(args[0], args[1:]...).Run)
			err := doOn(ns, p.Check)
			if !errors.Is(err, guard.ErrOpen) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("after %s: %v; want %q", tt.do, err, tt.want)
			}
			// The veth must be a port again before it is given a port's flags.
			in(t, ns, exec.Command("ip", "link", "set", "veth1", "master", "ecs-bridge").Run)
			on(t, ns, func(c *rtnl.Conn) error { return errors.Join(p.Install(c), p.Attach(c), p.Check(c)) })
		})
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]string{
		"all is there":           "",
		"the ruleset is flushed": "flush ruleset",
		"the chain is flushed":   "flush chain netdev ecs_guard in-veth1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, p := guarded(t)
			if before := entries(t, ns); strings.Count(before, "PERMANENT") != 2 || !strings.Contains(before, "in-veth1") {
				t.Fatalf("the guard left no trace: %s", before)
			}
			if harm != "" {
				nft(t, ns, strings.Fields(harm)...)
			}
			on(t, ns, func(c *rtnl.Conn) error {
				return errors.Join(
					netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.Link}}),
					guard.Remove(c, p.Bridge, p.Link, true))
			})
			if left := entries(t, ns); strings.Contains(left, "PERMANENT") || strings.Contains(left, "in-veth1") {
				t.Errorf("left behind: %s", left)
			}
			on(t, ns, func(c *rtnl.Conn) error { return guard.Remove(c, p.Bridge, p.Link, true) })
			in(t, ns, func() error { return netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: p.Bridge}}) })
			on(t, ns, func(c *rtnl.Conn) error { return guard.Remove(c, p.Bridge, p.Link, true) })
		})
	}
}

// Whoever else has a permanent neighbour on the bridge keeps it.
func TestSweepLeavesWhatIsNotATasks(t *testing.T) {
	t.Parallel()
	ns, _ := host(t, "169.254.172.1/22")
	const line = "ip neigh add 169.254.172.9 dev ecs-bridge lladdr 02:00:00:00:00:09 nud permanent"
	in(t, ns, exec.Command("sh", "-c", line).Run)
	before := entries(t, ns)
	on(t, ns, func(c *rtnl.Conn) error {
		return errors.Join(guard.Sweep(c, "ecs-bridge"), guard.Remove(c, "ecs-bridge", "veth9", true))
	})
	if after := entries(t, ns); after != before || !strings.Contains(after, "169.254.172.9") {
		t.Errorf("left %q of %q", after, before)
	}
}

func TestRemoveEndsTheTasksConnections(t *testing.T) {
	t.Parallel()
	ns, task := host(t, "169.254.172.1/22")
	run := func(ns *testnet.Namespace, command string) {
		t.Helper()
		args := strings.Fields(command)
		in(t, ns, exec.Command(args[0], args[1:]...).Run)
	}
	run(ns, "ip link set ecs-bridge up")
	run(ns, "ip link set veth1 up")
	run(task, "ip addr add 169.254.172.2/22 dev eth0")
	run(task, "ip link set eth0 up")
	for _, network := range []string{"tcp4", "tcp"} { // the second listens on IPv6 for both
		l, err := ns.Listen(network, ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, service, _ := net.SplitHostPort(l.Addr().String())
		client, err := task.DialContext(t.Context(), "tcp4", "169.254.172.1:"+service)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		neighbour, err := ns.DialContext(t.Context(), "tcp4", "127.0.0.1:"+service)
		if err != nil {
			t.Fatal(err)
		}
		defer neighbour.Close()
		other, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()

		p := port(guard.Strict, "169.254.172.2/22")
		on(t, ns, func(c *rtnl.Conn) error { return errors.Join(p.Install(c), guard.Remove(c, p.Bridge, p.Link, true)) })
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: the server's read ended with %v; want ECONNABORTED", network, err)
		}
		if _, err := io.WriteString(neighbour, "x"); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
			t.Errorf("%s: the connection of another address: %v", network, err)
		}
	}
}

func TestSweepRemovesWhatNoPortHas(t *testing.T) {
	t.Parallel()
	ns, p := guarded(t)
	before := entries(t, ns)
	on(t, ns, func(c *rtnl.Conn) error { return guard.Sweep(c, p.Bridge) })
	if after := entries(t, ns); after != before {
		t.Errorf("a sweep took what is in use: %s, before %s", after, before)
	}
	nft(t, ns, "add chain netdev ecs_guard other")
	in(t, ns, func() error { return netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.Link}}) })
	for range 2 {
		on(t, ns, func(c *rtnl.Conn) error { return guard.Sweep(c, p.Bridge) })
	}
	after := entries(t, ns)
	if strings.Contains(after, "PERMANENT") || strings.Contains(after, "in-veth1") || !strings.Contains(after, "chain other") {
		t.Errorf("after the sweep: %s; want someone else's chain and nothing of the port", after)
	}
}

func TestInstallReplacesWhatAnEarlierTaskHad(t *testing.T) {
	t.Parallel()
	ns, p := guarded(t)
	p.Addrs = p.Addrs[1:]
	on(t, ns, func(c *rtnl.Conn) error { return errors.Join(p.Install(c), p.Check(c)) })
	if rules := nft(t, ns, "list", "ruleset"); strings.Contains(rules, `"169.254.172.2"`) {
		t.Errorf("the earlier address is still there: %s", rules)
	}
}

func TestOffLeavesThePortAlone(t *testing.T) {
	t.Parallel()
	ns, _ := host(t)
	p := port(guard.Off, "169.254.172.2/22")
	on(t, ns, func(c *rtnl.Conn) error {
		return errors.Join(p.Install(c), p.Attach(c), p.Check(c), guard.Remove(c, p.Bridge, p.Link, false))
	})
	if left := entries(t, ns) + nft(t, ns, "list", "ruleset"); left != "" {
		t.Errorf("made: %s", left)
	}
}

func TestParseMode(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]guard.Mode{"": guard.Strict, "strict": guard.Strict, "source": guard.Source, "off": guard.Off} {
		if got, err := guard.ParseMode(s); got != want || err != nil {
			t.Errorf("ParseMode(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
	if _, err := guard.ParseMode("Strict"); err == nil || !strings.Contains(err.Error(), `"Strict": expected "strict"`) {
		t.Errorf("an unknown mode: %v", err)
	}
}
