package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// A Host acts in the network namespace of a bridge. It is for one goroutine at a time.
type Host struct{ conn }

// Open opens a host. Who opened the namespace closes it, after the host. It needs
// CAP_NET_ADMIN to change things.
func Open(ns *netns.NS) (*Host, error) {
	c, err := dial(ns)
	if err != nil {
		return nil, err
	}
	return &Host{c}, nil
}

// A Bridge is one that is there.
type Bridge struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
	Up    bool
}

// bridgeMAC is the MAC of the bridges made here. It is set, since a bridge would else
// take the lowest of its ports' and change it as tasks come and go; and it goes with an
// address that no task is ever given.
var bridgeMAC = ecs.MAC(ecs.EndpointAddr)

// Bridge looks a bridge up; [unix.ENODEV] where there is no interface of that name.
func (h *Host) Bridge(name string) (Bridge, error) {
	l, err := h.Link(name)
	if err != nil {
		return Bridge{}, err
	}
	if l.Kind != "bridge" {
		return Bridge{}, fmt.Errorf("interface %s is a %s: expected a bridge, or no interface of that name", name, l.Kind)
	}
	return newBridge(l), nil
}

func newBridge(l rtnl.Link) Bridge {
	return Bridge{Name: l.Name, Index: l.Index, MAC: l.MAC, Up: l.Up}
}

// EnsureBridge makes the bridge, or takes the one that is there with the MAC that it has, and
// brings it up. One that is up already is not changed. The MTU in bytes is for a new one.
// IPv6 is off on a new bridge until [Host.EnsureAddr] gives it an address. Several processes
// may try at once.
func (h *Host) EnsureBridge(name string, mtu int) (Bridge, error) {
	for {
		b, err := h.Bridge(name)
		if errors.Is(err, unix.ENODEV) {
			if err := h.makeBridge(name, mtu); err != nil {
				return Bridge{}, err
			}
			continue
		}
		if err != nil || b.Up {
			return b, err
		}
		err = h.Do(setUp(name))
		if errors.Is(err, unix.ENODEV) {
			continue // removed since
		}
		b.Up = err == nil
		return b, err
	}
}

// keepMAC makes another maker's bridge keep the MAC that it has, before it gets the first
// port of ours: a bridge whose MAC was never set takes that of a port. Whether it was set, the
// kernel does not say, and it forgets all neighbours on the bridge each time that one is set,
// be it the same.
func (h *Host) keepMAC(b Bridge) error {
	if b.Made() || b.MAC == nil {
		return nil
	}
	ports, err := h.Ports(b)
	if err != nil || slices.ContainsFunc(ports, func(p Port) bool { return p.Veth != nil }) {
		return err
	}
	return h.Do(setLink("keeping the MAC of bridge "+b.Name, b.Name, macAttr(b.MAC)))
}

// makeBridge makes a bridge that is down. One that somebody else has made meanwhile is
// as good.
func (h *Host) makeBridge(name string, mtu int) error {
	kind := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	kind.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	err := h.Do(linkStep(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "making bridge "+name, nl.NewIfInfomsg(unix.AF_UNSPEC), name,
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))), macAttr(bridgeMAC), kind))
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return err
	}
	if err := h.Do(noLinkLocal(name)); err != nil {
		return err
	}
	return h.disableIPv6(name)
}

// Endpoint is the address that tasks ask, as it stands on the bridge: alone.
var Endpoint = netip.PrefixFrom(ecs.EndpointAddr, ecs.EndpointAddr.BitLen())

// EnsureAddr gives the bridge an address, such as [Endpoint] or the gateway's in its
// subnet. Subnets that the bridge has already must not overlap it.
func (h *Host) EnsureAddr(b Bridge, p netip.Prefix) error {
	err := h.Do(addAddr(b.Index, p, true))
	if errors.Is(err, unix.EACCES) && p.Addr().Is6() { // IPv6 is off on the bridge
		if err := errors.Join(h.sysctl6(b.Name, "accept_ra", "0"), h.sysctl6(b.Name, "disable_ipv6", "0")); err != nil {
			return err
		}
		err = h.Do(addAddr(b.Index, p, true))
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	has, err := h.addrs(b.Index)
	if err == nil {
		delete(has, p)
		for other := range has {
			if other.Overlaps(p) {
				err = fmt.Errorf("bridge %s has the address %s, whose subnet overlaps %s: use the same gateway and subnet, or another bridge", b.Name, other, p)
			}
		}
		if err == nil {
			return nil
		}
	}
	return errors.Join(err, h.Do(rtnl.DelAddr(b.Index, p)))
}

// OthersAddrs are the addresses of the bridge that were not given here, as far as the kernel
// keeps that, and are not of its own making.
func (h *Host) OthersAddrs(b Bridge) ([]netip.Prefix, error) {
	all, err := h.Addrs(b.Index)
	var others []netip.Prefix
	for _, a := range all {
		if a.Proto != addrProto && !(a.Addr().Is6() && a.Addr().IsLinkLocalUnicast()) {
			others = append(others, a.Prefix)
		}
	}
	return others, err
}

// DelAddr takes an address of the bridge away. One that is gone is as good.
func (h *Host) DelAddr(b Bridge, p netip.Prefix) error {
	step := rtnl.DelAddr(b.Index, p)
	step.Fine = unix.EADDRNOTAVAIL
	return h.Do(step)
}

// CheckAddrs names the first of the addresses that the bridge lacks.
func (h *Host) CheckAddrs(b Bridge, want ...netip.Prefix) error {
	return h.checkAddrs("bridge "+b.Name, b.Index, want)
}
