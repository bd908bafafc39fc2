package guard_test

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/guard"
	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

var update = flag.Bool("update", false, "rewrite testdata/nft from what the kernel lists")

var (
	bridgeMAC = net.HardwareAddr{0x0a, 0x58, 169, 254, 172, 1}
	gateway4  = netip.MustParseAddr("169.254.172.1")
	gateway6  = netip.MustParseAddr("fd00:ec2::172:1")
)

// port is the one named veth1, of a task that has the last byte as that of its addresses.
func port(mode guard.Mode, addrs ...string) guard.Port {
	p := guard.Port{
		Mode: mode, Link: "veth1", Bridge: "ecs-bridge", BridgeMAC: bridgeMAC,
		MAC:      net.HardwareAddr{0x0a, 0x58, 169, 254, 172, 2},
		Gateways: []netip.Addr{gateway4, gateway6},
	}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, netip.MustParsePrefix(a))
	}
	return p
}

// host makes a host with the bridge, which has the addresses, and with veth1, whose peer
// is the returned task's eth0.
func host(t testing.TB, addrs ...string) (ns, task *testnet.Namespace) {
	t.Helper()
	ns, task = testnet.T(t), testnet.T(t)
	err := ns.Do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "ecs-bridge", HardwareAddr: bridgeMAC}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		for _, a := range append([]string{"169.254.170.2/32"}, addrs...) {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(bridge, addr); err != nil {
				return err
			}
		}
		peer, err := os.Open(task.Path())
		if err != nil {
			return err
		}
		defer peer.Close()
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "veth1", MasterIndex: bridge.Index},
			PeerName:  "eth0", PeerNamespace: netlink.NsFd(peer.Fd()),
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns, task
}

// in runs fn in the namespace and ends the test on its error.
func in(t testing.TB, ns *testnet.Namespace, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// on runs fn in the namespace, with a socket there.
func on(t testing.TB, ns *testnet.Namespace, fn func(*rtnl.Conn) error) {
	t.Helper()
	if err := doOn(ns, fn); err != nil {
		t.Fatal(err)
	}
}

func doOn(host *testnet.Namespace, fn func(*rtnl.Conn) error) error {
	ns, err := netns.Open(host.Path())
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := rtnl.Open(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.Close()
	return host.Do(func() error { return fn(c) })
}

func index(t testing.TB, ns *testnet.Namespace, name string) (i int) {
	t.Helper()
	in(t, ns, func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			i = l.Attrs().Index
		}
		return err
	})
	return i
}

func nft(t testing.TB, ns *testnet.Namespace, args ...string) string {
	t.Helper()
	var out []byte
	in(t, ns, func() (err error) {
		out, err = exec.Command("nft", args...).CombinedOutput()
		return err
	})
	return string(out)
}

func TestRulesAreThoseOfTheirFile(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		addrs []string
		apply func(*rtnl.Conn) error
	}{
		"port-strict": {apply: func(c *rtnl.Conn) error { return port(guard.Strict, "169.254.172.2/22").Install(c) }},
		"port-source": {apply: func(c *rtnl.Conn) error { return port(guard.Source, "169.254.172.2/22").Install(c) }},
		"port-strict-dual": {apply: func(c *rtnl.Conn) error {
			return port(guard.Strict, "169.254.172.2/22", "fd00:ec2::172:2/112").Install(c)
		}},
		"port-source-ipv6": {apply: func(c *rtnl.Conn) error { return port(guard.Source, "fd00:ec2::172:2/112").Install(c) }},
		"host-strict": {[]string{"169.254.172.1/22"}, func(c *rtnl.Conn) error {
			_, _, err := guard.Host{Bridge: "ecs-bridge", Mode: guard.Strict}.Ensure(c)
			return err
		}},
		"host-source": {[]string{"169.254.172.1/22"}, func(c *rtnl.Conn) error {
			_, _, err := guard.Host{Bridge: "ecs-bridge", Mode: guard.Source}.Ensure(c)
			return err
		}},
		"host-strict-dual": {[]string{"169.254.172.1/22", "10.7.0.1/24", "fd00:ec2::172:1/112"}, func(c *rtnl.Conn) error {
			_, _, err := guard.Host{Bridge: "ecs-bridge", Mode: guard.Strict}.Ensure(c)
			return err
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, _ := host(t, tt.addrs...)
			on(t, ns, tt.apply)
			got := nft(t, ns, "list", "ruleset")
			file := filepath.Join("../../testdata/nft", name+".nft")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			nft(t, ns, "flush", "ruleset")
			nft(t, ns, "--file", file)
			if diff := cmp.Diff(nft(t, ns, "list", "ruleset"), got); diff != "" {
				t.Errorf("the rules differ from those of %s (-file +ours):\n%s", file, diff)
			}
		})
	}
}
