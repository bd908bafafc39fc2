package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"taskmeta/internal/dev/testnet"
)

// family is what an address family has in a test below.
type family struct {
	kind                  int
	gateway, addr, subnet string // with lengths
	dst                   string // of the configured route
}

var (
	ipv4Family    = family{netlink.FAMILY_V4, "169.254.172.1/22", "169.254.172.2/22", "169.254.172.0/22", "169.254.170.2/32"}
	ipv6Family    = family{netlink.FAMILY_V6, "2001:db8::1/64", "2001:db8::2/64", "2001:db8::/64", "fd00:ec2::254/128"}
	ipv6Default   = family{netlink.FAMILY_V6, "2001:db8::1/64", "2001:db8::2/64", "2001:db8::/64", "::/0"}
	daemonDefault = family{netlink.FAMILY_V4, "169.254.172.1/22", "169.254.172.2/22", "169.254.172.0/22", "0.0.0.0/0"}
)

// Who replaces AWS's plugins finds on the host and in the task what theirs make: the bridge
// with the gateways' addresses, as it may have had them before; the task's addresses; a route
// to each gateway by itself, and the configured ones by it, none of them without next hop.
// DEL takes both ends of the pair away and leaves bridge and addresses.
func TestHostAndTaskAreAsAWSsPluginsMakeThem(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		families []family
		before   string // on the host
	}{
		"IPv4":                             {families: []family{ipv4Family}},
		"IPv4, the bridge is there":        {families: []family{ipv4Family}, before: "ip link add br-test type bridge"},
		"IPv4, with its address":           {families: []family{ipv4Family}, before: "ip link add br-test type bridge; ip addr add 169.254.172.1/22 dev br-test"},
		"IPv6":                             {families: []family{ipv6Family}},
		"IPv6, the bridge is there":        {families: []family{ipv6Family}, before: "ip link add br-test type bridge; ip link set br-test up"},
		"both":                             {families: []family{ipv4Family, ipv6Family}},
		"both, IPv6 with a default route":  {families: []family{ipv4Family, ipv6Default}},
		"a default route of IPv4":          {families: []family{daemonDefault}},
		"the host's eth0 is another thing": {families: []family{ipv4Family}, before: "ip link add eth0 type veth peer name up0; ip addr add 10.0.0.9/24 dev eth0; ip link set eth0 up"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, task := newHost(t), testnet.T(t)
			h.Sh(t, test.before)
			keys := map[string]any{"type": "ecs-ipam", "id": "test", "cniVersion": "0.3.0"}
			for _, f := range test.families {
				version := map[int]string{netlink.FAMILY_V4: "ipv4", netlink.FAMILY_V6: "ipv6"}[f.kind]
				keys[version+"-subnet"] = f.subnet
				keys[version+"-routes"] = []map[string]string{{"dst": f.dst}}
			}
			ipam, err := json.Marshal(keys)
			if err != nil {
				t.Fatal(err)
			}
			conf := fmt.Sprintf(`{"type": "ecs-bridge", "name": "test", "cniVersion": "0.3.0", "bridge": "br-test", "ipam": %s}`, ipam)
			links := h.network(t).Links
			h.must(t, "ADD", "c1", task.Path(), conf)
			for _, f := range test.families {
				hasAddr(t, h.Namespace, "br-test", f, f.gateway)
				hasAddr(t, task, "eth0", f, f.addr)
				f.checkRoutes(t, task)
			}
			h.must(t, "DEL", "c1", task.Path(), conf)
			for _, f := range test.families {
				hasAddr(t, h.Namespace, "br-test", f, f.gateway)
			}
			if after := h.network(t).Links; after != links {
				t.Errorf("the host has\n%s\nand had\n%s", after, links)
			}
			if left := task.Sh(t, "ip -o link"); strings.Contains(left, "eth0") || !strings.Contains(left, "lo:") {
				t.Errorf("the task is left with %s", left)
			}
		})
	}
}

// hasAddr fails the test unless the interface has the address.
func hasAddr(t *testing.T, ns *testnet.Namespace, ifname string, f family, want string) {
	t.Helper()
	var addrs []netlink.Addr
	if err := ns.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err == nil {
			addrs, err = netlink.AddrList(l, f.kind)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want }) {
		t.Errorf("%s has %v: want %s", ifname, addrs, want)
	}
}

// checkRoutes looks at all of the family's routes of the task's interface.
func (f family) checkRoutes(t *testing.T, task *testnet.Namespace) {
	t.Helper()
	var routes []netlink.Route
	if err := task.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			routes, err = netlink.RouteList(l, f.kind)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	gateway := netip.MustParsePrefix(f.gateway).Addr()
	var dsts []string
	for _, r := range routes {
		if !r.Gw.Equal(gateway.AsSlice()) || r.Src != nil {
			t.Errorf("the task has the route %s: want the next hop %s, and no source", r, gateway)
		}
		dsts = append(dsts, r.Dst.String())
	}
	want := []string{f.dst, netip.PrefixFrom(gateway, gateway.BitLen()).String()}
	slices.Sort(dsts)
	slices.Sort(want)
	if !slices.Equal(dsts, want) {
		t.Errorf("the task has routes to %v: want %v", dsts, want)
	}
}
