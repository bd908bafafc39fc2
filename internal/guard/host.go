package guard

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/rtnl"
)

// A Host is the host's own side of a bridge that stands among the host's other interfaces:
// one table, the same however many tasks there are, that keeps the tasks from everything but
// the endpoint, and the host's other interfaces and its own processes from the bridge. Each
// rule is about what comes in or goes out by the bridge, or comes for an address that no
// other interface has: what others say to one another is none of its business, whatever their
// addresses. For IPv4, routes say the same a second time (link.Host.EnsurePrivate).
type Host struct {
	Bridge string
	// Mode is that of the bridge's ports. Only [Strict] keeps tasks from the host's
	// services, and the LAN from tasks.
	Mode Mode
}

// DefaultBridge is the bridge where none is named. Its table has the name without a suffix.
const DefaultBridge = "ecs-bridge"

// table is the one of the bridge. nft takes letters, digits, '-', '.' and '_' in a name; of
// an interface's name others stand in hexadecimal, as does the '_' that begins them.
func (h Host) table() *nftables.Table {
	name := tableName
	if h.Bridge != DefaultBridge {
		name += "_"
		for _, b := range []byte(h.Bridge) {
			if '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || b == '-' || b == '.' {
				name += string(rune(b))
			} else {
				name += fmt.Sprintf("_%02x", b)
			}
		}
	}
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
}

// Bridges are those that have a table, whether they are there or not.
func Bridges(c *rtnl.Conn) (names []string, err error) {
	conn, err := dial(c)
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("listing tables: %w", explain(err))
	}
	for _, t := range tables {
		if t.Name == tableName {
			names = append(names, DefaultBridge)
			continue
		}
		suffix, ours := strings.CutPrefix(t.Name, tableName+"_")
		if !ours {
			continue
		}
		name, err := url.PathUnescape(strings.ReplaceAll(suffix, "_", "%"))
		if err == nil && (Host{Bridge: name}).table().Name == t.Name {
			names = append(names, name)
		}
	}
	return names, nil
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
	addrs, err := h.addrs(c, subnets)
	if err != nil {
		return nil, false, err
	}
	changed, err = h.install(c, addrs)
	return subnets, changed, err
}

// install makes the table for those addresses, and reports whether it was another.
func (h Host) install(c *rtnl.Conn, addrs []hostAddr) (changed bool, err error) {
	conn, err := dial(c)
	if err != nil {
		return false, err
	}
	defer conn.CloseLasting()
	table := h.table()
	want := h.chains(addrs)
	whole, err := holds(conn, table, want)
	if err != nil || whole {
		return false, err
	}
	if err := h.removeOld(conn); err != nil {
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
		return false, fmt.Errorf("installing table inet %s: %w", table.Name, explain(err))
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
	addrs, err := h.addrs(c, subnets)
	if err != nil {
		return err
	}
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	table := h.table()
	whole, err := holds(conn, table, h.chains(addrs))
	if err == nil && !whole {
		err = fmt.Errorf("%w: table inet %s is missing or was changed", ErrOpen, table.Name)
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
	table := h.table()
	conn.DelTable(table)
	err = conn.Flush()
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("deleting table inet %s: %w", table.Name, explain(err))
	}
	return true, nil
}

// removeOld deletes the table without a suffix if it is about another bridge than the default
// one: releases before 2 gave every bridge's table that name.
func (h Host) removeOld(conn *nftables.Conn) error {
	if h.Bridge == DefaultBridge {
		return nil
	}
	old := Host{Bridge: DefaultBridge}.table()
	rules, err := conn.GetRules(old, &nftables.Chain{Name: "raw", Table: old})
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading chain raw of table inet %s: %w", old.Name, explain(err))
	}
	about := func(e expr.Any) bool {
		cmp, ok := e.(*expr.Cmp)
		return ok && bytes.Equal(cmp.Data, ifname(h.Bridge))
	}
	if slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return slices.ContainsFunc(r.Exprs, about) }) {
		conn.DelTable(old) // in the batch that makes the new one
	}
	return nil
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

// A hostAddr is an address of the bridge in its subnet.
type hostAddr struct {
	netip.Prefix
	endpoint bool // tasks ask there
	alone    bool // no other interface has it
}

// addrs are [ecs.EndpointAddr], and those of the bridge's subnets.
func (h Host) addrs(c *rtnl.Conn, subnets []netip.Prefix) ([]hostAddr, error) {
	link, err := c.Link(h.Bridge)
	if err != nil {
		return nil, err
	}
	all, err := c.Addrs(0)
	if err != nil {
		return nil, err
	}
	alone := func(p netip.Prefix) bool {
		return !slices.ContainsFunc(all, func(a rtnl.Addr) bool { return a.Index != link.Index && a.Addr() == p.Addr() })
	}
	endpoint := netip.PrefixFrom(ecs.EndpointAddr, ecs.EndpointAddr.BitLen())
	addrs := []hostAddr{{endpoint, true, alone(endpoint)}}
	for _, s := range subnets {
		addrs = append(addrs, hostAddr{s, s.Addr().Is6(), alone(s)})
	}
	return addrs, nil
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
func (h Host) chains(addrs []hostAddr) []hostChain {
	var raw, in, forward, out []*nftables.Rule
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

	six := false
	for _, a := range addrs {
		to, from := to(a.Addr()), from(a.Addr())
		if a.endpoint {
			six = six || a.Addr().Is6()
			add(&raw, fromBridge, to, tcpPort(2), notrack(), accept)
			add(&out, toBridge, from, tcpPort(0), notrack())
		}
		if !a.alone {
			continue
		}
		if a.endpoint {
			add(&out, toSelf, to, tcpPort(2), drop)
		}
		if h.Mode == Strict || a.Addr() == ecs.EndpointAddr {
			add(&in, fromElsewhere, to, drop)
		} else {
			add(&in, fromElsewhere, to, fromSubnet(a.Prefix), drop)
		}
	}
	if h.Mode == Strict {
		if six {
			add(&raw, fromBridge, solicitation(), accept)
		}
		add(&raw, fromBridge, drop)
		add(&forward, toBridge, drop)
	}
	add(&forward, fromBridge, toBridge, drop)

	return []hostChain{
		{base("raw", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), raw},
		{base("in", nftables.ChainHookInput, nftables.ChainPriorityFilter), in},
		{base("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter), forward},
		{base("rawout", nftables.ChainHookOutput, nftables.ChainPriorityRaw), out},
	}
}

// holds reports whether the kernel's table is the wanted one.
func holds(conn *nftables.Conn, table *nftables.Table, want []hostChain) (bool, error) {
	listed, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return false, fmt.Errorf("listing the chains of table inet %s: %w", table.Name, explain(err))
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
			return false, fmt.Errorf("reading chain %s of table inet %s: %w", w.chain.Name, table.Name, err)
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

// fromSubnet matches the source.
func fromSubnet(s netip.Prefix) []expr.Any {
	mask := net.CIDRMask(s.Bits(), s.Addr().BitLen())
	return masked(expr.PayloadBaseNetworkHeader, sourceOffset(s.Addr()), mask, expr.CmpOpEq, s.Masked().Addr().AsSlice())
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
