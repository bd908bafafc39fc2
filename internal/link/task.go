package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// A Task acts in a task's network namespace. It is for one goroutine at a time.
type Task struct{ conn }

// OpenTask opens the network namespace at path. It needs CAP_SYS_ADMIN, as every entering
// of a namespace does.
func OpenTask(path string) (*Task, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	c, err := dial(ns)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return &Task{c}, nil
}

// Close lets go of the namespace.
func (t *Task) Close() {
	_ = t.conn.Close() // neither has anything to lose
	_ = t.NS.Close()
}

// A Route is one of the task's. With an invalid gateway the destination is on the link;
// a blackhole has no interface. Table, Priority, MTU (bytes) and AdvMSS (bytes) are the
// kernel's defaults when 0; Scope when nil.
type Route struct {
	Dst                          netip.Prefix
	Gateway                      netip.Addr
	Blackhole                    bool
	Table, Priority, MTU, AdvMSS int
	Scope                        *int
}

// An Interface is what a task's end of a veth pair is to have.
type Interface struct {
	Name   string
	MAC    net.HardwareAddr
	Addrs  []netip.Prefix
	Routes []Route
}

// SetUp brings the interface up, without addresses. Once the host's end is up as well, a
// frame can pass.
func (t *Task) SetUp(i Interface) error {
	if err := t.Do(noLinkLocal(i.Name), setUp(i.Name, macAttr(i.MAC))); err != nil {
		return err
	}
	if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		// Docker turns IPv6 off in the namespaces that it makes, unless told otherwise.
		return t.sysctl6(i.Name, "disable_ipv6", "0")
	}
	return nil
}

// Configure gives the interface its addresses, those that it lacks, then adds the routes in order. The subnets
// of the addresses are not taken to be on the link: who is to be reached needs a route. A
// route whose destination has one already is left out: the first wins. What runs in the
// task may ask as soon as there is a route, so it comes when both ends are up: a packet
// that is lost is sent again after a second only.
func (t *Task) Configure(i Interface) error {
	l, err := t.Link(i.Name)
	if err != nil {
		return err
	}
	var steps []rtnl.Step
	for _, p := range i.Addrs {
		add := addAddr(l.Index, p, false)
		add.Fine = unix.EEXIST
		steps = append(steps, add)
	}
	for _, r := range i.Routes {
		steps = append(steps, r.add(i, l.Index))
	}
	return t.Do(steps...)
}

// onLink reports whether a gateway is on the interface's link, even where another interface
// has the route to it: it is in the subnet of an address, or has a route by itself.
func (i Interface) onLink(gateway netip.Addr) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(gateway) }) ||
		slices.ContainsFunc(i.Routes, func(r Route) bool { return r.Gateway == gateway && r.toGateway() })
}

// toGateway reports whether the route is a gateway's own: by itself.
func (r Route) toGateway() bool { return r.Dst.IsSingleIP() && r.Dst.Addr() == r.Gateway }

// add is the step that adds the route to the interface of that index.
func (r Route) add(i Interface, index int) rtnl.Step {
	m := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(rtnl.Family(r.Dst.Addr())), Dst_len: uint8(r.Dst.Bits()),
		Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST, Scope: unix.RT_SCOPE_UNIVERSE,
	}}
	s := rtnl.NewStep(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, fmt.Sprintf("adding route %s", r), m,
		nl.NewRtAttr(unix.RTA_DST, r.Dst.Masked().Addr().AsSlice()))
	s.Fine = unix.EEXIST
	switch {
	case r.Blackhole:
		m.Type = unix.RTN_BLACKHOLE
	case r.Gateway.IsValid():
		if i.onLink(r.Gateway) {
			m.Flags |= unix.RTNH_F_ONLINK
		}
		s.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Gateway.AsSlice()))
	default:
		m.Scope = unix.RT_SCOPE_LINK
	}
	if !r.Blackhole {
		s.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	if r.Scope != nil {
		m.Scope = uint8(*r.Scope)
	}
	if r.Table != 0 {
		m.Table = unix.RT_TABLE_UNSPEC // the attribute holds what a byte cannot
		s.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(r.Table))))
	}
	if r.Priority != 0 {
		s.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(r.Priority))))
	}
	if r.MTU != 0 || r.AdvMSS != 0 {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		if r.MTU != 0 {
			metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
		}
		if r.AdvMSS != 0 {
			metrics.AddRtAttr(unix.RTAX_ADVMSS, nl.Uint32Attr(uint32(r.AdvMSS)))
		}
		s.AddData(metrics)
	}
	return s
}

func (r Route) String() string {
	switch {
	case r.Blackhole:
		return "blackhole " + r.Dst.String()
	case r.Gateway.IsValid():
		return fmt.Sprintf("%s via %s", r.Dst, r.Gateway)
	}
	return r.Dst.String() + " on the link"
}
