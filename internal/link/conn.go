// Package link makes what stands between a task and the host: the bridge, the veth pair,
// addresses and routes. A [Host] acts in the network namespace of the bridge, which its
// opener names, and a [Task] in the task's; neither moves an interface from one namespace to
// another.
package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// conn is a route netlink socket in one network namespace.
type conn struct{ *rtnl.Conn }

func dial(ns *netns.NS) (conn, error) {
	c, err := rtnl.Open(ns, unix.NETLINK_ROUTE)
	return conn{c}, err
}

// addrProto marks the addresses of bridges that were given here. It is none of those of
// linux/if_addr.h.
const addrProto = 236

// addAddr gives an address to the interface of that index. It may be used at once: nobody
// else has it, so IPv6 does not ask around first. With onLink the rest of the prefix is
// taken to be on the link as well.
func addAddr(index int, p netip.Prefix, onLink bool) rtnl.Step {
	if !onLink {
		return rtnl.NewAddr(index, p, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE, 0)
	}
	return rtnl.NewAddr(index, p, unix.IFA_F_NODAD, addrProto)
}

// checkAddrs names the first of the addresses that the interface of that index lacks.
func (c conn) checkAddrs(what string, index int, want []netip.Prefix) error {
	has, err := c.addrs(index)
	if err != nil {
		return err
	}
	for _, p := range want {
		if !has[p] {
			return fmt.Errorf("%s lacks the address %s", what, p)
		}
	}
	return nil
}

// addrs is the set of the addresses of the interface of that index.
func (c conn) addrs(index int) (map[netip.Prefix]bool, error) {
	all, err := c.Addrs(index)
	has := make(map[netip.Prefix]bool, len(all))
	for _, a := range all {
		has[a.Prefix] = true
	}
	return has, err
}

// sysctl6 writes one of an interface's IPv6 settings.
func (c conn) sysctl6(name, key, value string) error {
	err := c.NS.Do(func() error {
		f, err := os.OpenFile(filepath.Join("/proc/sys/net/ipv6/conf", name, key), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return fmt.Errorf("setting %s of %s to %s: %w", key, name, value, err)
	}
	return nil
}

// disableIPv6 turns IPv6 off on an interface. A kernel without IPv6 has nothing to turn off.
func (c conn) disableIPv6(name string) error {
	err := c.sysctl6(name, "disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

const addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE

// carrierTime is longer than the kernel lets the change of a carrier wait.
const carrierTime = 2 * time.Second

// awaitUp returns when an interface that has a carrier passes frames. The kernel leaves
// that to a worker, which may take a second to come to it; recent ones do the work when
// they are asked for the interface by its name, and of the others an event is awaited. What
// has no carrier after that time is left as it is.
func (c conn) awaitUp(name string) error {
	if l, err := c.Link(name); l.Passes || err != nil {
		return err
	}
	events, err := rtnl.Subscribe(c.NS, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return err
	}
	defer events.Close()
	for deadline := time.Now().Add(carrierTime); ; {
		if l, err := c.Link(name); l.Passes || err != nil {
			return err
		}
		if _, err := events.Next(deadline); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return fmt.Errorf("waiting for changes of links: %w", err)
		}
	}
}

// setLink changes the interface of that name.
func setLink(doing, name string, attrs ...*nl.RtAttr) rtnl.Step {
	return linkStep(unix.RTM_SETLINK, 0, doing, nl.NewIfInfomsg(unix.AF_UNSPEC), name, attrs...)
}

// setUp brings the interface of that name up.
func setUp(name string, attrs ...*nl.RtAttr) rtnl.Step {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Flags, info.Change = unix.IFF_UP, unix.IFF_UP
	return linkStep(unix.RTM_SETLINK, 0, "bringing "+name+" up", info, name, attrs...)
}

func linkStep(message, flags int, doing string, info *nl.IfInfomsg, name string, attrs ...*nl.RtAttr) rtnl.Step {
	s := rtnl.NewStep(message, flags, doing, info, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	for _, a := range attrs {
		s.AddData(a)
	}
	return s
}

// noLinkLocal keeps the kernel from giving the interface an IPv6 address of its own
// making. A kernel without IPv6 gives none anyway.
func noLinkLocal(name string) rtnl.Step {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	inet6 := spec.AddRtAttr(unix.AF_INET6, nil)
	inet6.AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(addrGenModeNone))
	s := setLink("turning IPv6 link-local addresses of "+name+" off", name, spec)
	s.Fine = unix.EAFNOSUPPORT
	return s
}

// macAttr is the hardware address for a request.
func macAttr(mac net.HardwareAddr) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_ADDRESS, mac) }
