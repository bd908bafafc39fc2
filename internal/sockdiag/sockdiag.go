// Package sockdiag asks the kernel about TCP connections, and ends them (sock_diag(7)).
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// Message types of linux/sock_diag.h, and attributes and filter operations of
// linux/inet_diag.h.
const (
	byFamily     = 20
	destroy      = unix.SOCK_DESTROY
	attrFilter   = 1
	filterSource = 7
	filterPeer   = 8
)

// Sets of states, a bit for each of net/tcp_states.h. Those of a connection that both
// ends have agreed to and that is not over: ESTABLISHED, FIN_WAIT1, FIN_WAIT2,
// CLOSE_WAIT, LAST_ACK, CLOSING. And all.
const (
	agreed   = 1<<1 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11
	listens  = 1 << 10 // LISTEN
	anyState = 1<<13 - 1
)

// A Conn is a socket to the kernel, for one question after another. It stays in the network
// namespace in which it was opened, and keeps that namespace in being.
type Conn struct{ socket *rtnl.Conn }

// Open opens a socket in a network namespace.
func Open(ns *netns.NS) (Conn, error) {
	c, err := rtnl.Open(ns, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return Conn{}, fmt.Errorf("%w (the kernel must have CONFIG_INET_DIAG)", err)
	}
	return Conn{c}, nil
}

// Close closes the socket.
func (c Conn) Close() error { return c.socket.Close() }

// Connected reports whether the namespace has a socket at the local end of a connection
// from local to remote that both ends have agreed to. An IPv6 socket that speaks IPv4
// counts by its IPv4 addresses.
func (c Conn) Connected(local, remote netip.AddrPort) (bool, error) {
	local, remote = unmap(local), unmap(remote)
	// The kernel looks one socket up as it would for a packet, in a microsecond or two.
	found, err := c.ask("asking for a socket", 0, message(local, remote, anyState))
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return false, err
	case len(found) == 1 && found[0].is(local, remote):
		return true, nil
	}
	// It passes over a socket that is bound to an interface, and may name one that
	// listens. So look at all, which takes the kernel longer, in either family.
	for _, family := range families(local.Addr()) {
		ask := message(netip.AddrPort{}, netip.AddrPort{}, agreed)
		ask[0] = family
		found, err := c.ask("listing sockets", unix.NLM_F_DUMP, ask,
			filter(filterSource, local.Addr(), int32(local.Port()), 2*filterSize(local.Addr())),
			filter(filterPeer, remote.Addr(), int32(remote.Port()), filterSize(remote.Addr())))
		if err != nil {
			return false, err
		}
		for _, s := range found {
			if s.is(local, remote) {
				return true, nil
			}
		}
	}
	return false, nil
}

// ListensOn reports whether a TCP socket of the namespace listens on the interface of that
// index alone.
func (c Conn) ListensOn(index int) (bool, error) {
	all, err := c.listeners()
	return slices.ContainsFunc(all, func(s socket) bool { return s.device() == index }), err
}

// Listeners are the addresses at which TCP sockets of the namespace listen.
func (c Conn) Listeners() (all []netip.AddrPort, err error) {
	found, err := c.listeners()
	for _, s := range found {
		all = append(all, s.local())
	}
	return all, err
}

func (c Conn) listeners() (all []socket, err error) {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		ask := message(netip.AddrPort{}, netip.AddrPort{}, listens)
		ask[0] = family
		found, err := c.ask("listing sockets", unix.NLM_F_DUMP, ask)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// Destroy ends every TCP connection that the namespace has with peer, in whatever state: its
// user gets ECONNABORTED. It needs CAP_NET_ADMIN.
func (c Conn) Destroy(peer netip.Addr) error {
	for _, family := range families(peer) {
		ask := message(netip.AddrPort{}, netip.AddrPort{}, anyState)
		ask[0] = family
		found, err := c.ask("listing connections", unix.NLM_F_DUMP, ask, filter(filterPeer, peer, -1, filterSize(peer)))
		if err != nil {
			return err
		}
		for _, s := range found {
			body := make([]byte, 8, 8+idSize)
			body[0], body[1] = s[0], unix.IPPROTO_TCP
			end := rtnl.NewStep(destroy, 0, "ending a connection", rtnl.Raw(append(body, s.id()...)))
			end.Fine = unix.ENOENT // it ended by itself
			err := c.socket.Do(end)
			if errors.Is(err, unix.EOPNOTSUPP) {
				err = fmt.Errorf("%w (the kernel must have CONFIG_INET_DIAG_DESTROY)", err)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// families are those in which a socket with addr may be: an IPv6 one may speak IPv4.
func families(addr netip.Addr) []byte {
	if addr.Is4() {
		return []byte{unix.AF_INET, unix.AF_INET6}
	}
	return []byte{unix.AF_INET6}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// idSize is that of struct inet_diag_sockid.
const idSize = 48

// A socket is the kernel's struct inet_diag_msg.
type socket []byte

func (s socket) id() []byte { return s[4 : 4+idSize] }

// is reports whether the socket is the local end of that connection, and agreed to.
func (s socket) is(local, remote netip.AddrPort) bool {
	id := s.id()
	return 1<<s[1]&agreed != 0 &&
		s.local() == local &&
		s.addr(id[20:36]) == remote.Addr() && binary.BigEndian.Uint16(id[2:]) == remote.Port()
}

// device is the index of the interface that the socket is bound to, or 0.
func (s socket) device() int { return int(binary.NativeEndian.Uint32(s.id()[36:])) }

func (s socket) local() netip.AddrPort {
	return netip.AddrPortFrom(s.addr(s.id()[4:20]), binary.BigEndian.Uint16(s.id()))
}

func (s socket) addr(b []byte) netip.Addr {
	if s[0] == unix.AF_INET {
		b = b[:4]
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr.Unmap()
}

// message is a struct inet_diag_req_v2.
func message(local, remote netip.AddrPort, states uint32) []byte {
	b := make([]byte, 8+idSize)
	b[0], b[1] = unix.AF_INET, unix.IPPROTO_TCP
	if local.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[4:], states)
	id := b[8:]
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint64(id[40:], ^uint64(0)) // INET_DIAG_NOCOOKIE, twice
	return b
}

// filterSize is the length of one filter operation on addr.
func filterSize(addr netip.Addr) int { return 12 + addr.BitLen()/8 }

// filter is one operation, struct inet_diag_bc_op and struct inet_diag_hostcond: the end
// that code names has that address and port, or any port for -1. Left is how long the
// program is from here on: a socket that does not match leaves it past its end.
func filter(code byte, addr netip.Addr, port int32, left int) []byte {
	b := make([]byte, 12, filterSize(addr))
	b[0], b[1] = code, byte(filterSize(addr))
	binary.NativeEndian.PutUint16(b[2:], uint16(left+4))
	b[4], b[5] = unix.AF_INET, byte(addr.BitLen())
	if addr.Is6() {
		b[4] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[8:], uint32(port))
	return append(b, addr.AsSlice()...)
}

// ask returns the sockets in the answers to a question: those that pass all filters.
func (c Conn) ask(doing string, flags int, body []byte, filters ...[]byte) ([]socket, error) {
	s := rtnl.NewStep(byFamily, flags, doing, rtnl.Raw(body))
	if filters != nil {
		s.AddData(nl.NewRtAttr(attrFilter, slices.Concat(filters...)))
	}
	answers, err := c.socket.Ask(s)
	found := make([]socket, len(answers))
	for i, answer := range answers {
		if len(answer) < 4+idSize {
			return nil, fmt.Errorf("%s: the kernel's answer has %d bytes; expected %d", doing, len(answer), 4+idSize)
		}
		found[i] = answer
	}
	return found, err
}
