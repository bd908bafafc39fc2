package guard

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/rtnl"
)

// A Host is the host's own side of a bridge: one table, the same however many tasks
// there are, that keeps the host's other interfaces, and its own processes, away from
// the addresses on the bridge, and the tasks from everything but the endpoint.
type Host struct {
	Bridge string
	// Mode is that of the bridge's ports. Only [Strict] keeps tasks from the host's
	// services, and the LAN from tasks.
	Mode Mode
}

// Ensure makes the table what it should be, and reports whether it was not. It reads the
// subnets from the bridge, if there is to be a table, and returns them, so it is called
// again whenever the bridge's addresses change, and from time to time, since anyone may
// flush a ruleset.
func (h Host) Ensure(c *rtnl.Conn) (subnets []netip.Prefix, changed bool, err error) {
	if h.Mode == Off {
		changed, err = h.Remove(c)
		return nil, changed, err
	}
	if subnets, err = h.Subnets(c); err != nil {
		return nil, false, err
	}
	changed, err = h.install(c, subnets)
	return subnets, changed, err
}

// install makes the table for those subnets, and reports whether it was another.
func (h Host) install(c *rtnl.Conn, subnets []netip.Prefix) (changed bool, err error) {
	conn, err := dial(c)
	if err != nil {
		return false, err
	}
	defer conn.CloseLasting()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	want := h.chains(subnets)
	whole, err := holds(conn, table, want)
	if err != nil || whole {
		return false, err
	}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	for _, w := range want {
		w.chain.Table = table
		conn.AddChain(w.chain)
		for _, r := range w.rules {
			r.Table, r.Chain = table, w.chain
			conn.AddRule(r)
		}
	}
	if err := conn.Flush(); err != nil {
		return false, fmt.Errorf("installing table inet %s: %w", tableName, explain(err))
	}
	return true, nil
}

// Check reports whether the table is what it should be; an [ErrOpen] says that it is not.
func (h Host) Check(c *rtnl.Conn) error {
	if h.Mode == Off {
		return nil
	}
	subnets, err := h.Subnets(c)
	if err != nil {
		return err
	}
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	whole, err := holds(conn, table, h.chains(subnets))
	if err == nil && !whole {
		err = fmt.Errorf("%w: table inet %s is missing or was changed", ErrOpen, tableName)
	}
	return err
}

// Remove deletes the table, and reports whether it was there.
func (h Host) Remove(c *rtnl.Conn) (changed bool, err error) {
	conn, err := dial(c)
	if err != nil {
		return false, err
	}
	defer conn.CloseLasting()
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName})
	err = conn.Flush()
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("deleting table inet %s: %w", tableName, explain(err))
	}
	return true, nil
}

// Subnets are those of the bridge's addresses, each with the bridge's own address in it;
// the endpoint's is not among them.
func (h Host) Subnets(c *rtnl.Conn) ([]netip.Prefix, error) {
	link, err := c.Link(h.Bridge)
	if err != nil {
		return nil, err
	}
	list, err := c.Addrs(link.Index)
	if err != nil {
		return nil, err
	}
	var subnets []netip.Prefix
	for _, a := range list {
		// Every interface has an IPv6 link-local subnet of the same addresses.
		if addr := a.Addr(); addr != ecs.EndpointAddr && !(addr.Is6() && addr.IsLinkLocalUnicast()) {
			subnets = append(subnets, a.Prefix)
		}
	}
	slices.SortFunc(subnets, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return subnets, nil
}

// A hostChain is one of the table's chains as it should be.
type hostChain struct {
	chain *nftables.Chain
	rules []*nftables.Rule
}

func base(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: priority, Policy: &accept}
}

// chains is the whole table. "raw" and "rawout" come before connection tracking, which
// requests pass by, and before anyone's address translation.
func (h Host) chains(subnets []netip.Prefix) []hostChain {
	var in, forward, out []*nftables.Rule
	add := func(to *[]*nftables.Rule, exprs ...[]expr.Any) {
		*to = append(*to, &nftables.Rule{Exprs: join(exprs...)})
	}
	drop := join(counter(), verdict(expr.VerdictDrop))
	accept := join(counter(), verdict(expr.VerdictAccept))
	bridge, lo := ifname(h.Bridge), ifname("lo")
	fromBridge := meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, bridge)
	fromElsewhere := join(meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, bridge), meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, lo))
	toBridge := meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, bridge)
	toSelf := meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, lo)

	endpoints := []netip.Addr{ecs.EndpointAddr}
	for _, s := range subnets {
		if s.Addr().Is6() {
			endpoints = append(endpoints, s.Addr())
		}
	}
	for _, e := range endpoints {
		add(&in, fromBridge, to(e), tcpPort(2), notrack(), accept)
		add(&out, toBridge, from(e), tcpPort(0), notrack())
		add(&out, toSelf, to(e), tcpPort(2), drop)
	}
	if h.Mode == Strict {
		if len(endpoints) > 1 {
			add(&in, fromBridge, solicitation(), accept)
		}
		add(&in, fromBridge, drop)
	}
	add(&in, fromElsewhere, to(ecs.EndpointAddr), drop)
	for _, s := range subnets {
		if h.Mode == Strict {
			add(&in, fromElsewhere, toSubnet(s), drop)
		}
		add(&in, fromElsewhere, fromSubnet(s), drop)
	}
	add(&forward, fromBridge, toBridge, drop)

	return []hostChain{
		{base("raw", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), in},
		{base("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter), forward},
		{base("rawout", nftables.ChainHookOutput, nftables.ChainPriorityRaw), out},
	}
}

// holds reports whether the kernel's table is the wanted one.
func holds(conn *nftables.Conn, table *nftables.Table, want []hostChain) (bool, error) {
	listed, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return false, fmt.Errorf("listing the chains of table inet %s: %w", tableName, explain(err))
	}
	listed = slices.DeleteFunc(listed, func(c *nftables.Chain) bool { return c.Table.Name != table.Name })
	if len(listed) != len(want) {
		return false, nil
	}
	for _, w := range want {
		i := slices.IndexFunc(listed, func(c *nftables.Chain) bool { return c.Name == w.chain.Name })
		if i < 0 || !sameHook(listed[i], w.chain) {
			return false, nil
		}
		rules, err := conn.GetRules(table, w.chain)
		if err != nil {
			return false, fmt.Errorf("reading chain %s of table inet %s: %w", w.chain.Name, tableName, err)
		}
		if !same(table.Family, rules, w.rules) {
			return false, nil
		}
	}
	return true, nil
}

func sameHook(a, b *nftables.Chain) bool {
	return a.Type == b.Type && a.Hooknum != nil && *a.Hooknum == *b.Hooknum &&
		*a.Priority == *b.Priority && a.Policy != nil && *a.Policy == *b.Policy
}

// ifname is an interface's name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// family matches packets of addr's.
func family(addr netip.Addr) []expr.Any {
	f := byte(unix.NFPROTO_IPV4)
	if addr.Is6() {
		f = unix.NFPROTO_IPV6
	}
	return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f})
}

func to(addr netip.Addr) []expr.Any { return join(family(addr), destination(addr)) }

func from(addr netip.Addr) []expr.Any {
	return join(family(addr), eq(expr.PayloadBaseNetworkHeader, sourceOffset(addr), addr.AsSlice()))
}

func toSubnet(s netip.Prefix) []expr.Any { return subnet(s, destinationOffset(s.Addr())) }

func fromSubnet(s netip.Prefix) []expr.Any { return subnet(s, sourceOffset(s.Addr())) }

func subnet(s netip.Prefix, offset uint32) []expr.Any {
	mask := net.CIDRMask(s.Bits(), s.Addr().BitLen())
	return join(family(s.Addr()), masked(expr.PayloadBaseNetworkHeader, offset, mask, expr.CmpOpEq, s.Masked().Addr().AsSlice()))
}

// tcpPort matches TCP with the endpoint's port as its source (offset 0) or destination
// (offset 2).
func tcpPort(offset uint32) []expr.Any {
	return join(meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}),
		eq(expr.PayloadBaseTransportHeader, offset, be16(ecs.EndpointPort)))
}

// solicitation matches the question for an IPv6 neighbour.
func solicitation() []expr.Any {
	return join(meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV6}),
		meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_ICMPV6}),
		eq(expr.PayloadBaseTransportHeader, 0, []byte{solicit}))
}
