package link

import (
	"context"
	"errors"
	"hash/fnv"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// All of this file is for a bridge that stands among the host's other interfaces. In a
// network namespace of its own it has no others to be kept apart from.
//
// An address of the bridge would else be the host's on every interface: the host answers
// ARP for it everywhere, takes packets from a container of another network that has the same
// address for forged ones, and cannot reach that container itself. So the routes that the
// kernel makes for the addresses stand in two tables of the bridge's own, and rules have
// these asked for the bridge's packets alone:
//
//	packets                      table  has                 for
//	iif BRIDGE                   in     the addresses       what comes in by the bridge
//	from 169.254.170.2 iif lo    out    the tasks' subnets  the endpoint's answers, and what rp_filter asks about a question for it
//	from GATEWAY iif lo          out                        what rp_filter asks about a question for the gateway's MAC address
//
// Another interface that has the gateway's address too is asked before ours, and there is no
// rule for it then. The sockets find 169.254.170.2 to send from all the same: the kernel looks
// for a source address among those of the interfaces.

const (
	// firstTable is the first of the numbers of tables, of which each bridge has two.
	firstTable = 1692_000_000
	// privatePriority comes after the table of local addresses (0), and before everybody
	// else's rules that were seen (Tailscale 5210, wg-quick and the main table 32764 on).
	privatePriority = 172
	// lastPriority is that of a route of which another to the same destination comes first.
	lastPriority = 1 << 30
)

// tables are the numbers of a bridge's two.
type tables struct{ in, out int }

func tablesOf(bridge string) tables {
	h := fnv.New32a()
	_, _ = h.Write([]byte(bridge))
	in := firstTable + 2*int(h.Sum32()%1_000_000)
	return tables{in, in + 1}
}

func (t tables) has(number int) bool { return number == t.in || number == t.out }

// EnsurePrivate keeps the IPv4 addresses of a bridge on the host from everybody but those
// who are on the bridge, and reports whether they were not. With routed that is so for
// [Endpoint] alone, and the host still routes to the subnets of the others, if no other
// interface has the same subnet. The kernel makes its routes again whenever an address is
// added or the bridge is set up, so it is called again then; see [WatchPrivate].
func (h *Host) EnsurePrivate(b Bridge, routed bool) (changed bool, err error) {
	all, err := h.Addrs(0)
	if err != nil {
		return false, err
	}
	has, err := h.Rules()
	if err != nil {
		return false, err
	}
	tables := tablesOf(b.Name)
	from := func(a netip.Addr) rtnl.Rule {
		return rtnl.Rule{Table: tables.out, Priority: privatePriority, In: "lo", From: a}
	}
	rules := []rtnl.Rule{{Table: tables.in, Priority: privatePriority, In: b.Name}, from(Endpoint.Addr())}
	var add, del []rtnl.Step
	for _, a := range all {
		if a.Index != b.Index || !a.Addr().Is4() {
			continue
		}
		r := routesOf(a, tables)
		add = append(add, steps(rtnl.Route.Add, r.own...)...)
		switch {
		case a.Prefix == Endpoint:
			del = append(del, steps(rtnl.Route.Del, slices.Concat(anyones(r.local), r.subnet)...)...)
		case routed:
			add = append(add, steps(rtnl.Route.Add, slices.Concat(r.local, r.last)...)...)
			del = append(del, steps(rtnl.Route.Del, r.subnet...)...)
		default:
			del = append(del, steps(rtnl.Route.Del, slices.Concat(anyones(r.local), r.subnet, r.last)...)...)
			if !slices.ContainsFunc(all, func(o rtnl.Addr) bool { return o.Index != b.Index && o.Addr() == a.Addr() }) {
				rules = append(rules, from(a.Addr()))
			}
		}
	}
	for _, r := range rules {
		if !slices.Contains(has, r) {
			add = append(add, r.Add())
		}
	}
	for _, r := range has {
		if tables.has(r.Table) && !slices.Contains(rules, r) {
			del = append(del, r.Del())
		}
	}
	return h.change(append(add, del...))
}

// RemovePrivate takes back what [Host.EnsurePrivate] did, if it did. The bridge may be gone.
func (h *Host) RemovePrivate(name string) (changed bool, err error) {
	has, err := h.Rules()
	if err != nil {
		return false, err
	}
	tables := tablesOf(name)
	var back []rtnl.Step
	if !slices.ContainsFunc(has, func(r rtnl.Rule) bool { return tables.has(r.Table) }) {
		return false, nil
	}
	b, err := h.Bridge(name)
	switch {
	case errors.Is(err, unix.ENODEV): // its routes are gone with it
	case err != nil:
		return false, err
	default:
		addrs, err := h.Addrs(b.Index)
		if err != nil {
			return false, err
		}
		for _, a := range addrs {
			if a.Addr().Is4() {
				r := routesOf(a, tables)
				back = append(back, steps(rtnl.Route.Add, slices.Concat(r.local, r.subnet)...)...)
				back = append(back, steps(rtnl.Route.Del, r.last...)...)
			}
		}
	}
	for _, number := range []int{tables.in, tables.out} {
		own, err := h.Routes(number)
		if err != nil {
			return false, err
		}
		back = append(back, steps(rtnl.Route.Del, own...)...)
	}
	for _, r := range has {
		if tables.has(r.Table) {
			back = append(back, r.Del())
		}
	}
	return h.change(back)
}

// routes are those of one address of a bridge.
type routes struct {
	local  []rtnl.Route // the kernel's, by which the address, and its subnet's broadcast address, are the host's
	subnet []rtnl.Route // the kernel's, by which its subnet is on the bridge
	last   []rtnl.Route // as subnet, after every other interface's
	own    []rtnl.Route // in the bridge's own tables
}

func routesOf(a rtnl.Addr, tables tables) (r routes) {
	local := rtnl.Route{
		Table: unix.RT_TABLE_LOCAL, Dst: netip.PrefixFrom(a.Addr(), 32), Src: a.Addr(), Index: a.Index,
		Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Protocol: unix.RTPROT_KERNEL,
	}
	r.local = []rtnl.Route{local}
	own := local
	own.Table, own.Protocol = tables.in, unix.RTPROT_STATIC
	r.own = []rtnl.Route{own}
	if a.Bits() == 32 {
		return r
	}
	subnet := rtnl.Route{
		Table: unix.RT_TABLE_MAIN, Dst: a.Masked(), Src: a.Addr(), Index: a.Index,
		Type: unix.RTN_UNICAST, Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_KERNEL,
	}
	r.subnet = []rtnl.Route{subnet}
	last := subnet
	last.Priority, last.Protocol = lastPriority, unix.RTPROT_STATIC
	r.last = []rtnl.Route{last}
	own = subnet
	// Of no source: the kernel would want that to be a local address.
	own.Table, own.Protocol, own.Src = tables.out, unix.RTPROT_STATIC, netip.Addr{}
	r.own = append(r.own, own)
	if a.Bits() < 31 {
		broadcast := local
		broadcast.Dst, broadcast.Type, broadcast.Scope = netip.PrefixFrom(lastOf(a.Prefix), 32), unix.RTN_BROADCAST, unix.RT_SCOPE_LINK
		r.local = append(r.local, broadcast)
	}
	return r
}

// anyones are the same routes, whoever made them.
func anyones(all []rtnl.Route) (routes []rtnl.Route) {
	for _, r := range all {
		r.Protocol, r.Src = unix.RTPROT_UNSPEC, netip.Addr{}
		routes = append(routes, r)
	}
	return routes
}

// lastOf is the last address of an IPv4 subnet.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func steps(step func(rtnl.Route) rtnl.Step, all ...rtnl.Route) (s []rtnl.Step) {
	for _, r := range all {
		s = append(s, step(r))
	}
	return s
}

// change takes steps, of which those whose work was done already count for nothing.
func (h *Host) change(all []rtnl.Step) (changed bool, err error) {
	var failed []error
	for some := range slices.Chunk(all, 64) { // the answers to more would not fit in the socket
		for _, err := range h.Try(some...) {
			switch {
			case err == nil:
				changed = true
			case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT):
			default:
				failed = append(failed, err)
			}
		}
	}
	return changed, errors.Join(failed...)
}

// WatchPrivate reports changes of what [Host.EnsurePrivate] makes of a bridge: its rules, its
// tables, and what somebody adds to the table of local addresses. Changes of links and
// addresses are [Watch]'s. It is [rtnl.Watch] otherwise.
func WatchPrivate(ctx context.Context, ns *netns.NS, bridge string) (<-chan struct{}, error) {
	tables := tablesOf(bridge)
	about := func(m syscall.NetlinkMessage) bool {
		t := rtnl.Table(m)
		return tables.has(t) || t == unix.RT_TABLE_LOCAL && m.Header.Type == unix.RTM_NEWROUTE
	}
	return rtnl.Watch(ctx, ns, about, unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE)
}
