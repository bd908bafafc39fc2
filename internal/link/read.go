package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/rtnl"
)

// An Address is one that an interface has, in its subnet.
type Address struct {
	IfName string
	netip.Prefix
}

// Addresses returns the global addresses of the network namespace at path, those of
// loopback interfaces left out, in the kernel's order.
func Addresses(path string) (all []Address, err error) {
	err = inspect(path, func(c conn) error {
		links, err := c.Links()
		if err != nil {
			return err
		}
		names := make(map[int]string)
		for _, l := range links {
			if !l.Loopback {
				names[l.Index] = l.Name
			}
		}
		addrs, err := c.Addrs(0)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if name := names[a.Index]; name != "" && a.Global {
				all = append(all, Address{name, a.Prefix})
			}
		}
		return nil
	})
	return all, err
}

// AllCounters returns those of the interfaces of the network namespace at path other than
// loopback, by their names.
func AllCounters(path string) (map[string]ecs.Counters, error) {
	all := make(map[string]ecs.Counters)
	err := inspect(path, func(c conn) error {
		links, err := c.Links()
		if err != nil {
			return err
		}
		for _, l := range links {
			var n struct { // the first of struct rtnl_link_stats64
				RxPackets, TxPackets, RxBytes, TxBytes, RxErrors, TxErrors, RxDropped, TxDropped uint64
			}
			if _, err := binary.Decode(l.Counters, binary.NativeEndian, &n); err == nil && !l.Loopback {
				all[l.Name] = ecs.Counters{
					RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
					TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped,
				}
			}
		}
		return nil
	})
	return all, err
}

// inspect runs read in the network namespace at path.
func inspect(path string, read func(conn) error) error {
	t, err := OpenTask(path)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := read(t.conn); err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	return nil
}

// Check compares the task's interface with what it is to have and names the first thing
// that is missing.
func (t *Task) Check(want Interface) error { return t.check(want, false) }

// CheckReach is [Task.Check] that takes any route to a destination for ours, be it of our
// interface: whatever is there, [Task.Configure] leaves it.
func (t *Task) CheckReach(want Interface) error { return t.check(want, true) }

func (t *Task) check(want Interface, anyRoute bool) error {
	l, err := t.Link(want.Name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s is missing in the task's namespace", want.Name)
	case err != nil:
		return fmt.Errorf("in the task's namespace: %w", err)
	case l.Kind != "veth":
		return fmt.Errorf("%s in the task's namespace is a %s: expected a veth", want.Name, l.Kind)
	case !l.Up:
		return fmt.Errorf("%s is down in the task's namespace", want.Name)
	case want.MAC != nil && l.MAC.String() != want.MAC.String():
		return fmt.Errorf("%s has the MAC %s: expected %s", want.Name, l.MAC, want.MAC)
	}
	if err := t.checkAddrs(want.Name, l.Index, want.Addrs); err != nil {
		return err
	}
	return t.checkRoutes(want.Routes, l.Index, anyRoute)
}

// A foundRoute is one that the task has.
type foundRoute struct {
	slot
	gateway   netip.Addr
	blackhole bool
	index     int // of its interface, 0 if it has none or several
}

// A slot is what the kernel has one route for, as far as [Task.Configure] adds any.
type slot struct {
	table, priority int
	dst             netip.Prefix
}

// slot is where the route is added.
func (r Route) slot() slot {
	s := slot{r.Table, r.Priority, r.Dst.Masked()}
	if s.table == 0 {
		s.table = unix.RT_TABLE_MAIN
	}
	if s.priority == 0 && r.Dst.Addr().Is6() {
		s.priority = 1024 // IP6_RT_PRIO_USER
	}
	return s
}

// is reports whether a route that is there is this one of the interface of that index. The
// first versions had the route to a gateway without it as its own next hop.
func (r Route) is(f foundRoute, index int) bool {
	if r.Blackhole || f.blackhole {
		return r.Blackhole && f.blackhole
	}
	return f.index == index && (f.gateway == r.Gateway || r.toGateway() && !f.gateway.IsValid())
}

// checkRoutes looks for each route that the interface of that index is to have. One whose
// destination is another interface's is not expected: [Task.Configure] left it out.
func (t *Task) checkRoutes(want []Route, index int, anyRoute bool) error {
	all, err := t.Ask(rtnl.NewStep(unix.RTM_GETROUTE, unix.NLM_F_DUMP, "listing the task's routes", &nl.RtMsg{}))
	if err != nil {
		return err
	}
	found := make(map[slot][]foundRoute)
	for _, message := range all {
		f, err := readRoute(message)
		if err != nil {
			return fmt.Errorf("listing the task's routes: %w", err)
		}
		found[f.slot] = append(found[f.slot], f)
	}
	for _, r := range want {
		if !slices.ContainsFunc(found[r.slot()], func(f foundRoute) bool {
			return anyRoute || r.is(f, index) || !r.Blackhole && f.index != index
		}) {
			return fmt.Errorf("the task lacks the route %s", r)
		}
	}
	return nil
}

func readRoute(message []byte) (f foundRoute, err error) {
	m := nl.DeserializeRtMsg(message)
	attrs, err := nl.ParseRouteAttr(message[m.Len():])
	dst := netip.IPv4Unspecified()
	if m.Family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	f.table, f.blackhole = int(m.Table), m.Type == unix.RTN_BLACKHOLE
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_GATEWAY:
			f.gateway, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			f.index = int(binary.NativeEndian.Uint32(a.Value))
		case unix.RTA_PRIORITY:
			f.priority = int(binary.NativeEndian.Uint32(a.Value))
		case unix.RTA_TABLE:
			f.table = int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	f.dst = netip.PrefixFrom(dst, int(m.Dst_len))
	return f, err
}
