package link

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

// A Host acts in the network namespace that its opener was in. It is for one goroutine
// at a time, and sysctls are written in the namespace of the thread that runs it.
type Host struct{ conn }

// OpenHost opens the caller's network namespace. It needs CAP_NET_ADMIN to change things.
func OpenHost() (*Host, error) {
	c, err := dial(netns.None())
	if err != nil {
		return nil, err
	}
	return &Host{c}, nil
}

// Close lets go of the namespace.
func (h *Host) Close() { h.close() }

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
	l, err := h.link(name)
	if err != nil {
		return Bridge{}, err
	}
	if l.Type() != "bridge" {
		return Bridge{}, fmt.Errorf("interface %s is a %s: expected a bridge, or no interface of that name", name, l.Type())
	}
	a := l.Attrs()
	return Bridge{Name: name, Index: a.Index, MAC: a.HardwareAddr, Up: a.Flags&net.FlagUp != 0}, nil
}

// EnsureBridge makes the bridge, or takes the one that is there, with the MAC that it has
// by then, and brings it up. The MTU in bytes is for a new one. IPv6 is off on a new
// bridge until [Host.EnsureAddr] gives it an address. Several processes may try at once.
func (h *Host) EnsureBridge(name string, mtu int) (Bridge, error) {
	for {
		b, err := h.Bridge(name)
		if errors.Is(err, unix.ENODEV) {
			if err := h.makeBridge(name, mtu); err != nil {
				return Bridge{}, err
			}
			continue
		}
		if err != nil || b.Up && bytes.Equal(b.MAC, bridgeMAC) {
			return b, err
		}
		// Setting the MAC that another maker's bridge has keeps it from changing.
		err = h.do(setUp(name, macAttr(b.MAC)))
		if errors.Is(err, unix.ENODEV) {
			continue // removed since
		}
		b.Up = err == nil
		return b, err
	}
}

// makeBridge makes a bridge that is down. One that somebody else has made meanwhile is
// as good.
func (h *Host) makeBridge(name string, mtu int) error {
	kind := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	kind.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	err := h.do(linkStep(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "making bridge "+name, nl.NewIfInfomsg(unix.AF_UNSPEC), name,
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))), macAttr(bridgeMAC), kind))
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return err
	}
	if err := h.do(noLinkLocal(name)); err != nil {
		return err
	}
	return disableIPv6(name)
}

// disableIPv6 turns IPv6 off on an interface of the calling thread's namespace. A kernel
// without IPv6 has nothing to turn off.
func disableIPv6(name string) error {
	err := sysctl6(name, "disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sysctl6 writes one of an interface's IPv6 settings.
func sysctl6(name, key, value string) error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", name, key)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("setting %s of %s: %w", key, name, err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("setting %s of %s to %s: %w", key, name, value, err)
	}
	return nil
}

// Endpoint is the address that tasks ask, as it stands on the bridge: alone.
var Endpoint = netip.PrefixFrom(ecs.EndpointAddr, ecs.EndpointAddr.BitLen())

// EnsureAddr gives the bridge an address, such as [Endpoint] or the gateway's in its
// subnet. Subnets that the bridge has already must not overlap it.
func (h *Host) EnsureAddr(b Bridge, p netip.Prefix) error {
	err := h.do(addAddr(b.Index, p, true))
	if errors.Is(err, unix.EACCES) && p.Addr().Is6() { // IPv6 is off on the bridge
		if err := errors.Join(sysctl6(b.Name, "accept_ra", "0"), sysctl6(b.Name, "disable_ipv6", "0")); err != nil {
			return err
		}
		err = h.do(addAddr(b.Index, p, true))
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	others, err := addrs(b)
	if err == nil {
		i := slices.IndexFunc(others, func(other netip.Prefix) bool { return other != p && other.Overlaps(p) })
		if i < 0 {
			return nil
		}
		err = fmt.Errorf("bridge %s has the address %s, whose subnet overlaps %s: use the same gateway and subnet, or another bridge", b.Name, others[i], p)
	}
	return errors.Join(err, h.do(delAddr(b.Index, p)))
}

// CheckAddrs names the first of the addresses that the bridge lacks.
func (h *Host) CheckAddrs(b Bridge, want ...netip.Prefix) error {
	has, err := addrs(b)
	if err != nil {
		return err
	}
	for _, p := range want {
		if !slices.Contains(has, p) {
			return fmt.Errorf("bridge %s lacks the address %s", b.Name, p)
		}
	}
	return nil
}

// addrs lists the addresses of the bridge.
func addrs(b Bridge) ([]netip.Prefix, error) {
	all, err := consistent(func() ([]netlink.Addr, error) {
		return netlink.AddrList(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: b.Index}}, unix.AF_UNSPEC)
	})
	if err != nil {
		return nil, fmt.Errorf("listing the addresses of bridge %s: %w", b.Name, err)
	}
	var has []netip.Prefix
	for _, a := range all {
		if p, ok := prefix(a.IPNet); ok {
			has = append(has, p)
		}
	}
	return has, nil
}
