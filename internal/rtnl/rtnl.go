// Package rtnl is a netlink socket in a network namespace that its opener names. It sends
// changes together, asks questions, reads lists that are whole, and tells of changes. Most
// of it serves route netlink; the socket itself speaks any protocol.
package rtnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
)

// A Conn is a socket for one step after another. It is for one goroutine at a time. It
// stays in the namespace in which it was opened, and keeps that in being.
type Conn struct {
	// NS is the namespace, for as long as who opened it keeps it open.
	NS  *netns.NS
	fd  int
	seq uint32
}

// Open opens a socket of a netlink protocol in a namespace.
func Open(ns *netns.NS, protocol int) (*Conn, error) {
	fd, err := ns.Socket(unix.AF_NETLINK, unix.SOCK_RAW, protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("asking netlink for full error messages: %w", err)
	}
	return &Conn{NS: ns, fd: fd}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// A Step is one change, or one question, to the kernel.
type Step struct {
	*nl.NetlinkRequest
	Doing string        // what its error says was being done
	Fine  syscall.Errno // an error that is as good as success, or 0
}

// NewStep makes a step of a message type, its flags, its fixed part and its attributes.
func NewStep(message, flags int, doing string, data ...nl.NetlinkRequestData) Step {
	s := Step{NetlinkRequest: nl.NewNetlinkRequest(message, flags), Doing: doing}
	s.Data = data
	return s
}

// Raw is the fixed part of a message, as the kernel has it.
type Raw []byte

// Len is the number of bytes.
func (r Raw) Len() int { return len(r) }

// Serialize returns the bytes.
func (r Raw) Serialize() []byte { return r }

// Do makes the changes as [Conn.Try] does and returns the first failure.
func (c *Conn) Do(steps ...Step) error {
	for _, err := range c.Try(steps...) {
		if err != nil {
			return err
		}
	}
	return nil
}

// Try sends changes in one system call and returns what became of each. A process that is
// killed has made all of them or none. The kernel takes a step even after an earlier one
// has failed.
func (c *Conn) Try(steps ...Step) []error {
	if len(steps) == 0 {
		return nil
	}
	var message []byte
	first := c.seq + 1
	for _, s := range steps {
		c.seq++
		s.Seq, s.Flags = c.seq, s.Flags|unix.NLM_F_ACK
		message = append(message, s.Serialize()...)
	}
	answers := make([]error, len(steps))
	err := c.exchange(message, steps[0].Doing, func(m syscall.NetlinkMessage) bool {
		if i := m.Header.Seq - first; m.Header.Type == unix.NLMSG_ERROR && i < uint32(len(steps)) {
			answers[i] = steps[i].failure(m)
			return int(i) == len(steps)-1 // they come in order
		}
		return false // a late answer to an earlier step
	})
	if err != nil {
		return []error{err}
	}
	return answers
}

// Ask returns the answers to a question. A list that the kernel says has changed while it
// was read is read again.
func (c *Conn) Ask(s Step) ([][]byte, error) {
	for {
		var answers [][]byte
		var refused error
		whole := true
		c.seq++
		s.Seq = c.seq
		err := c.exchange(s.Serialize(), s.Doing, func(m syscall.NetlinkMessage) bool {
			if m.Header.Seq != c.seq {
				return false
			}
			whole = whole && m.Header.Flags&unix.NLM_F_DUMP_INTR == 0
			if m.Header.Type == unix.NLMSG_ERROR || m.Header.Type == unix.NLMSG_DONE {
				refused = s.failure(m)
				return true
			}
			answers = append(answers, m.Data)
			return m.Header.Flags&unix.NLM_F_MULTI == 0
		})
		if err = errors.Join(err, refused); err != nil {
			return nil, err
		}
		if whole {
			return answers, nil
		}
	}
}

// One returns the answer to a question that has one.
func (c *Conn) One(s Step) ([]byte, error) {
	answers, err := c.Ask(s)
	if err == nil && len(answers) != 1 {
		err = fmt.Errorf("%s: %d answers instead of one", s.Doing, len(answers))
	}
	if err != nil {
		return nil, err
	}
	return answers[0], nil
}

// exchange sends a message and reads what comes until last says that it was the last.
func (c *Conn) exchange(message []byte, doing string, last func(syscall.NetlinkMessage) bool) error {
	if err := unix.Sendto(c.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("%s: writing to netlink: %w", doing, err)
	}
	for {
		messages, err := receive(c.fd)
		if err != nil {
			return fmt.Errorf("%s: reading netlink's answer: %w", doing, err)
		}
		for _, m := range messages {
			if last(m) {
				return nil
			}
		}
	}
}

// buffers are of the most bytes that the kernel puts into one packet of a list.
var buffers = sync.Pool{New: func() any { b := make([]byte, 1<<15); return &b }}

// receive reads a packet of the kernel. Whoever has CAP_NET_ADMIN in the namespace, as a
// task may have in its own, can send others: they are passed over.
func receive(fd int) ([]syscall.NetlinkMessage, error) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		n, from, err := unix.Recvfrom(fd, *buffer, unix.MSG_TRUNC)
		switch sender, _ := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		case sender == nil || sender.Pid != 0:
		case n > len(*buffer):
			return nil, os.NewSyscallError("recvfrom", unix.EMSGSIZE)
		default:
			return syscall.ParseNetlinkMessage(bytes.Clone((*buffer)[:(n+3)&^3])) // a message ends at a multiple of 4
		}
	}
}

// each calls do with the type and the value of each attribute, of which it copies nothing.
func each(attributes []byte, do func(kind uint16, value []byte)) {
	for len(attributes) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofNlAttr || length > len(attributes) {
			return
		}
		do(binary.NativeEndian.Uint16(attributes[2:])&nl.NLA_TYPE_MASK, attributes[unix.SizeofNlAttr:length])
		attributes = attributes[min((length+3)&^3, len(attributes)):]
	}
}

// failure reads an acknowledgement, or the end of a list: an error number, 0 for success,
// then the header of the request, then attributes of which one may be a text.
func (s Step) failure(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil // the end of a list, with no number
	}
	errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	if errno == 0 || errno == s.Fine {
		return nil
	}
	err := fmt.Errorf("%s: %w", s.Doing, errno)
	const head = 4 + unix.SizeofNlMsghdr
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 || m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < head {
		return err
	}
	skip := head
	if m.Header.Flags&unix.NLM_F_CAPPED == 0 {
		skip = 4 + int(binary.NativeEndian.Uint32(m.Data[4:]))
	}
	attrs, _ := nl.ParseRouteAttr(m.Data[min(skip, len(m.Data)):])
	for _, a := range attrs {
		if a.Attr.Type == nl.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w (%s)", err, unix.ByteSliceToString(a.Value))
		}
	}
	return err
}
