package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// An Address is one that an interface has, in its subnet.
type Address struct {
	IfName string
	netip.Prefix
}

// Addresses returns the global addresses of the network namespace at path, those of
// loopback interfaces left out, in the kernel's order.
func Addresses(path string) ([]Address, error) {
	var all []Address
	err := inspect(path, func(h *netlink.Handle) error {
		links, err := consistent(h.LinkList)
		if err != nil {
			return fmt.Errorf("listing interfaces: %w", err)
		}
		names := make(map[int]string)
		for _, l := range links {
			if a := l.Attrs(); a.Flags&net.FlagLoopback == 0 {
				names[a.Index] = a.Name
			}
		}
		addrs, err := consistent(func() ([]netlink.Addr, error) { return h.AddrList(nil, unix.AF_UNSPEC) })
		if err != nil {
			return fmt.Errorf("listing addresses: %w", err)
		}
		for _, a := range addrs {
			p, ok := prefix(a.IPNet)
			if name := names[a.LinkIndex]; ok && name != "" && a.Scope == unix.RT_SCOPE_UNIVERSE {
				all = append(all, Address{name, p})
			}
		}
		return nil
	})
	return all, err
}

// Counters are an interface's since it was made.
type Counters struct {
	IfName                                  string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// AllCounters returns those of the interfaces of the network namespace at path other than
// loopback.
func AllCounters(path string) ([]Counters, error) {
	var all []Counters
	err := inspect(path, func(h *netlink.Handle) error {
		links, err := consistent(h.LinkList)
		if err != nil {
			return fmt.Errorf("listing interfaces: %w", err)
		}
		for _, l := range links {
			a := l.Attrs()
			if s := a.Statistics; s != nil && a.Flags&net.FlagLoopback == 0 {
				all = append(all, Counters{
					a.Name,
					s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped,
					s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped,
				})
			}
		}
		return nil
	})
	return all, err
}

// inspect runs read on the network namespace at path.
func inspect(path string, read func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("opening network namespace %s: %w", path, err)
	}
	defer ns.Close()
	if err := inspectNS(ns, read); err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	return nil
}

func inspectNS(ns netns.NsHandle, read func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer h.Close()
	return read(h)
}

// Check compares the task's interface with what it is to have and names the first thing
// that is missing.
func (t *Task) Check(want Interface) error {
	return inspectNS(t.ns, func(h *netlink.Handle) error {
		l, err := h.LinkByName(want.Name)
		switch {
		case errors.As(err, new(netlink.LinkNotFoundError)):
			return fmt.Errorf("%s is missing in the task's namespace", want.Name)
		case err != nil:
			return fmt.Errorf("looking up %s in the task's namespace: %w", want.Name, err)
		case l.Type() != "veth":
			return fmt.Errorf("%s in the task's namespace is a %s: expected a veth", want.Name, l.Type())
		case l.Attrs().Flags&net.FlagUp == 0:
			return fmt.Errorf("%s is down in the task's namespace", want.Name)
		case want.MAC != nil && l.Attrs().HardwareAddr.String() != want.MAC.String():
			return fmt.Errorf("%s has the MAC %s: expected %s", want.Name, l.Attrs().HardwareAddr, want.MAC)
		}
		addrs, err := consistent(func() ([]netlink.Addr, error) { return h.AddrList(l, unix.AF_UNSPEC) })
		if err != nil {
			return fmt.Errorf("listing the addresses of %s: %w", want.Name, err)
		}
		has := make(map[netip.Prefix]bool)
		for _, a := range addrs {
			if p, ok := prefix(a.IPNet); ok {
				has[p] = true
			}
		}
		for _, p := range want.Addrs {
			if !has[p] {
				return fmt.Errorf("%s lacks the address %s", want.Name, p)
			}
		}
		return checkRoutes(h, want.Routes)
	})
}

// checkRoutes looks for each route in the table that it is to be in, by destination and
// gateway.
func checkRoutes(h *netlink.Handle, want []Route) error {
	// A dump without a filter has the main table only.
	all, err := consistent(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("listing the task's routes: %w", err)
	}
	type key struct {
		table   int
		dst     netip.Prefix
		gateway netip.Addr
	}
	has := make(map[key]bool)
	for _, r := range all {
		dst, ok := prefix(r.Dst)
		if !ok {
			continue
		}
		gateway, _ := netip.AddrFromSlice(r.Gw)
		has[key{r.Table, dst, gateway.Unmap()}] = true
	}
	for _, r := range want {
		table := r.Table
		if table == 0 {
			table = unix.RT_TABLE_MAIN
		}
		if !has[key{table, r.Dst.Masked(), r.Gateway}] {
			return fmt.Errorf("the task lacks the route %s", r)
		}
	}
	return nil
}
