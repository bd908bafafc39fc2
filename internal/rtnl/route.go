package rtnl

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Route leads to an interface, or says that a destination is this host's own.
type Route struct {
	Table    int
	Dst      netip.Prefix
	Src      netip.Addr // the address that packets bear which are sent by it
	Index    int        // of the interface
	Type     uint8      // RTN_UNICAST, RTN_LOCAL, …
	Scope    uint8      // RT_SCOPE_LINK, …
	Protocol uint8      // RTPROT_KERNEL, …: who made it
	Priority int        // the lower wins
}

// Add is the step that adds the route beside others to the same destination;
// [unix.EEXIST] where it is there already.
func (r Route) Add() Step {
	return r.step(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, "adding")
}

// Del is the step that deletes the route; [unix.ESRCH] where there is none.
func (r Route) Del() Step { return r.step(unix.RTM_DELROUTE, 0, "deleting") }

func (r Route) step(message, flags int, doing string) Step {
	m := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(Family(r.Dst.Addr())), Dst_len: uint8(r.Dst.Bits()), Table: unix.RT_TABLE_UNSPEC, // its attribute holds what a byte cannot
		Protocol: r.Protocol, Type: r.Type, Scope: r.Scope,
	}}
	s := NewStep(message, flags, fmt.Sprintf("%s route %s in table %d", doing, r.Dst, r.Table), m,
		nl.NewRtAttr(unix.RTA_DST, r.Dst.Masked().Addr().AsSlice()),
		nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.Index))),
		nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(r.Table))))
	if r.Src.IsValid() {
		s.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, r.Src.AsSlice()))
	}
	if r.Priority != 0 {
		s.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.Priority))))
	}
	return s
}

// Routes lists the IPv4 routes of a table that lead to an interface. The kernel may send all
// tables for it: it is not for what is done often.
func (c *Conn) Routes(table int) ([]Route, error) {
	m := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET}}
	all, err := list(c, NewStep(unix.RTM_GETROUTE, unix.NLM_F_DUMP, "listing routes", m), readRoute)
	return slices.DeleteFunc(all, func(r Route) bool { return r.Table != table }), err
}

func readRoute(message []byte) (Route, error) {
	attrs, err := attributes(message, unix.SizeofRtMsg)
	if err != nil {
		return Route{}, err
	}
	m := nl.DeserializeRtMsg(message)
	r := Route{Table: int(m.Table), Type: m.Type, Scope: m.Scope, Protocol: m.Protocol}
	dst := netip.IPv4Unspecified()
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_TABLE:
			r.Table = number(a)
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_PREFSRC:
			r.Src, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			r.Index = number(a)
		case unix.RTA_PRIORITY:
			r.Priority = number(a)
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(m.Dst_len))
	return r, nil
}

// A Rule has a table asked for the route of an IPv4 packet.
type Rule struct {
	Table    int
	Priority int        // the lower is asked first
	In       string     // the interface that the packet comes in by, lo for one of this host's own; "" is any
	From     netip.Addr // the packet's source; the zero address is any
}

// Add is the step that adds the rule; [unix.EEXIST] where it is there already.
func (r Rule) Add() Step {
	return r.step(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "adding")
}

// Del is the step that deletes the rule; [unix.ENOENT] where there is none.
func (r Rule) Del() Step { return r.step(unix.RTM_DELRULE, 0, "deleting") }

func (r Rule) String() string {
	s := fmt.Sprintf("rule %d:", r.Priority)
	if r.From.IsValid() {
		s += fmt.Sprintf(" from %s", r.From)
	}
	if r.In != "" {
		s += " iif " + r.In
	}
	return fmt.Sprintf("%s lookup %d", s, r.Table)
}

func (r Rule) step(message, flags int, doing string) Step {
	// struct fib_rule_hdr, which has the shape of struct rtmsg; its action is rtm_type.
	m := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET, Table: unix.RT_TABLE_UNSPEC, Type: nl.FR_ACT_TO_TBL}}
	s := NewStep(message, flags, fmt.Sprintf("%s %s", doing, r), m,
		nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(r.Table))),
		nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(r.Priority))))
	if message == unix.RTM_NEWRULE {
		// systemd-networkd deletes the rules that it did not make when it starts, except the kernel's.
		s.AddData(nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(unix.RTPROT_KERNEL)))
	}
	if r.In != "" {
		s.AddData(nl.NewRtAttr(nl.FRA_IIFNAME, nl.ZeroTerminated(r.In)))
	}
	if r.From.IsValid() {
		m.Src_len = uint8(r.From.BitLen())
		s.AddData(nl.NewRtAttr(nl.FRA_SRC, r.From.AsSlice()))
	}
	return s
}

// Rules lists the rules of IPv4 that have a table asked.
func (c *Conn) Rules() ([]Rule, error) {
	m := &nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET}}
	return list(c, NewStep(unix.RTM_GETRULE, unix.NLM_F_DUMP, "listing the rules of routing", m), readRule)
}

func readRule(message []byte) (Rule, error) {
	attrs, err := attributes(message, unix.SizeofRtMsg)
	if err != nil {
		return Rule{}, err
	}
	var r Rule
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.FRA_TABLE:
			r.Table = number(a)
		case nl.FRA_PRIORITY:
			r.Priority = number(a)
		case nl.FRA_IIFNAME:
			r.In = unix.ByteSliceToString(a.Value)
		case nl.FRA_SRC:
			r.From, _ = netip.AddrFromSlice(a.Value)
		}
	}
	return r, nil
}

// Table is the routing table that a change of a route or of a rule is about, 0 for what is
// neither.
func Table(m syscall.NetlinkMessage) int {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE:
	default:
		return 0
	}
	attrs, err := attributes(m.Data, unix.SizeofRtMsg)
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_TABLE && len(a.Value) == 4 { // FRA_TABLE is the same number
			return number(a)
		}
	}
	return int(m.Data[4])
}
