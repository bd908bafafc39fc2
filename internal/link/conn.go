// Package link makes what stands between a task and the host: the bridge, the veth pair,
// addresses and routes. A [Host] acts in the caller's network namespace and a [Task] in
// the task's; neither moves an interface from one namespace to another.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// conn is a route netlink socket in one network namespace.
type conn struct {
	handle *nl.SocketHandle
}

// dial opens a socket in the namespace ns, or in the caller's when ns is not open.
func dial(ns netns.NsHandle) (conn, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return conn{}, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := s.SetExtAck(true); err != nil {
		s.Close()
		return conn{}, fmt.Errorf("asking netlink for full error messages: %w", err)
	}
	return conn{&nl.SocketHandle{Socket: s}}, nil
}

func (c conn) close() { c.handle.Close() }

// A step is one change asked of the kernel.
type step struct {
	*nl.NetlinkRequest
	doing string        // what the error says was being done
	fine  syscall.Errno // an error that is as good as success, or 0
}

func newStep(message, flags int, doing string, data ...nl.NetlinkRequestData) step {
	s := step{NetlinkRequest: nl.NewNetlinkRequest(message, flags|unix.NLM_F_ACK), doing: doing}
	s.Data = data
	return s
}

// do takes the steps as [conn.try] does and returns the first failure.
func (c conn) do(steps ...step) error {
	for _, err := range c.try(steps...) {
		if err != nil {
			return err
		}
	}
	return nil
}

// try sends the steps in one system call and returns what became of each. A process that
// is killed has taken all of them or none. The kernel takes a step even after an earlier
// one has failed.
func (c conn) try(steps ...step) []error {
	var message []byte
	answers := make([]error, len(steps))
	for i := range steps {
		c.handle.Seq++
		steps[i].Seq = c.handle.Seq
		message = append(message, steps[i].Serialize()...)
	}
	first := c.handle.Seq - uint32(len(steps)) + 1
	if err := unix.Sendto(c.handle.Socket.GetFd(), message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return []error{fmt.Errorf("%s: writing to netlink: %w", steps[0].doing, err)}
	}
	for left := len(steps); left > 0; {
		messages, _, err := c.handle.Socket.Receive()
		if err != nil {
			return []error{fmt.Errorf("%s: reading netlink's answer: %w", steps[0].doing, err)}
		}
		for _, m := range messages {
			i := int(m.Header.Seq - first)
			if m.Header.Type != unix.NLMSG_ERROR || i < 0 || i >= len(steps) {
				continue // a late answer to an earlier request
			}
			answers[i] = steps[i].failure(m)
			left--
		}
	}
	return answers
}

// failure reads an acknowledgement: an error number, 0 for success, then the header of the
// request, then attributes of which one may be a text.
func (s step) failure(m syscall.NetlinkMessage) error {
	errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	if errno == 0 || errno == s.fine {
		return nil
	}
	const head = 4 + unix.SizeofNlMsghdr
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 || len(m.Data) < head {
		return fmt.Errorf("%s: %w", s.doing, errno)
	}
	skip := head
	if m.Header.Flags&unix.NLM_F_CAPPED == 0 {
		skip = 4 + int(binary.NativeEndian.Uint32(m.Data[4:]))
	}
	attrs, err := nl.ParseRouteAttr(m.Data[min(skip, len(m.Data)):])
	if err != nil {
		return fmt.Errorf("%s: %w", s.doing, errno)
	}
	for _, a := range attrs {
		if a.Attr.Type == nl.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%s: %w (%s)", s.doing, errno, unix.ByteSliceToString(a.Value))
		}
	}
	return fmt.Errorf("%s: %w", s.doing, errno)
}

const (
	extSkipStats    = 1 << 3 // RTEXT_FILTER_SKIP_STATS: a link without its counters
	addrGenModeNone = 1      // IN6_ADDR_GEN_MODE_NONE
)

// link looks an interface up; [unix.ENODEV] where there is none of that name.
func (c conn) link(name string) (netlink.Link, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.handle}
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extSkipStats)))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	found, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, fmt.Errorf("looking up interface %s: %w", name, err)
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("looking up interface %s: %d answers instead of one", name, len(found))
	}
	l, err := netlink.LinkDeserialize(nil, found[0])
	if err != nil {
		return nil, fmt.Errorf("looking up interface %s: %w", name, err)
	}
	return l, nil
}

// carrierTime is longer than the kernel lets the change of a carrier wait.
const carrierTime = 2 * time.Second

// awaitUp returns when an interface that has a carrier passes frames. The kernel leaves
// that to a worker, which may take a second to come to it; recent ones do the work when
// they are asked for the interface by its name, and of the others an event is awaited. What
// has no carrier after that time is left as it is.
func (c conn) awaitUp(name string) error {
	up := func() (bool, error) {
		l, err := c.link(name)
		return err == nil && l.Attrs().OperState == netlink.OperUp, err
	}
	if now, err := up(); now || err != nil {
		return err
	}
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("subscribing to changes of links: %w", err)
	}
	defer events.Close()
	for deadline := time.Now().Add(carrierTime); ; {
		if now, err := up(); now || err != nil {
			return err
		}
		left := unix.NsecToTimeval(time.Until(deadline).Nanoseconds())
		if left.Sec < 0 || left.Nano() == 0 {
			return nil
		}
		if err := events.SetReceiveTimeout(&left); err != nil {
			return fmt.Errorf("setting the time to wait for changes of links: %w", err)
		}
		if _, _, err := events.Receive(); errors.Is(err, unix.EAGAIN) {
			return nil
		} else if err != nil && !errors.Is(err, unix.ENOBUFS) { // events that were lost were events
			return fmt.Errorf("waiting for changes of links: %w", err)
		}
	}
}

// setLink changes the interface of that name.
func setLink(doing, name string, attrs ...*nl.RtAttr) step {
	return linkStep(unix.RTM_SETLINK, 0, doing, nl.NewIfInfomsg(unix.AF_UNSPEC), name, attrs...)
}

// setUp brings the interface of that name up.
func setUp(name string, attrs ...*nl.RtAttr) step {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Flags, info.Change = unix.IFF_UP, unix.IFF_UP
	return linkStep(unix.RTM_SETLINK, 0, "bringing "+name+" up", info, name, attrs...)
}

func linkStep(message, flags int, doing string, info *nl.IfInfomsg, name string, attrs ...*nl.RtAttr) step {
	s := newStep(message, flags, doing, info, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	for _, a := range attrs {
		s.AddData(a)
	}
	return s
}

// noLinkLocal keeps the kernel from giving the interface an IPv6 address of its own
// making. A kernel without IPv6 gives none anyway.
func noLinkLocal(name string) step {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	inet6 := spec.AddRtAttr(unix.AF_INET6, nil)
	inet6.AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(addrGenModeNone))
	s := setLink("turning IPv6 link-local addresses of "+name+" off", name, spec)
	s.fine = unix.EAFNOSUPPORT
	return s
}

// macAttr is the hardware address for a request.
func macAttr(mac net.HardwareAddr) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_ADDRESS, mac) }

// consistent repeats a dump that the kernel said was changed while it was read.
func consistent[T any](dump func() ([]T, error)) ([]T, error) {
	for {
		all, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}
