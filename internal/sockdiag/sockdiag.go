// Package sockdiag asks the kernel about TCP connections, and ends them (sock_diag(7)).
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
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
	anyState = 1<<13 - 1
)

// A Conn is a socket to the kernel, for one request after another. It stays in the
// network namespace in which it was opened, and keeps that namespace in being.
type Conn struct{ fd int }

// Open opens a socket in the network namespace of the calling thread.
func Open() (Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return Conn{}, fmt.Errorf("opening a netlink socket (the kernel must have CONFIG_INET_DIAG): %w", err)
	}
	return Conn{fd}, nil
}

// Close closes the socket.
func (c Conn) Close() error { return unix.Close(c.fd) }

// Connected reports whether the namespace has a socket at the local end of a connection
// from local to remote that both ends have agreed to. An IPv6 socket that speaks IPv4
// counts by its IPv4 addresses.
func (c Conn) Connected(local, remote netip.AddrPort) (bool, error) {
	local, remote = unmap(local), unmap(remote)
	// The kernel looks one socket up as it would for a packet, in a microsecond or two.
	found, err := c.request(byFamily, 0, message(local, remote, anyState))
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return false, fmt.Errorf("asking for the socket %s to %s: %w", local, remote, err)
	case len(found) == 1 && found[0].is(local, remote):
		return true, nil
	}
	// It passes over a socket that is bound to an interface, and may name one that
	// listens. So look at all, which takes the kernel longer, in either family.
	for _, family := range families(local.Addr()) {
		ask := message(netip.AddrPort{}, netip.AddrPort{}, agreed)
		ask[0] = family
		ask = append(ask, attribute(attrFilter, append(
			filter(filterSource, local.Addr(), int32(local.Port()), 2*filterSize(local.Addr())),
			filter(filterPeer, remote.Addr(), int32(remote.Port()), filterSize(remote.Addr()))...))...)
		found, err := c.request(byFamily, unix.NLM_F_DUMP, ask)
		if err != nil {
			return false, fmt.Errorf("listing the sockets %s to %s: %w", local, remote, err)
		}
		for _, s := range found {
			if s.is(local, remote) {
				return true, nil
			}
		}
	}
	return false, nil
}

// Destroy ends every TCP connection that this host has with peer, in whatever state: its
// user gets ECONNABORTED. It needs CAP_NET_ADMIN.
func Destroy(peer netip.Addr) (err error) {
	c, err := Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, family := range families(peer) {
		ask := message(netip.AddrPort{}, netip.AddrPort{}, anyState)
		ask[0] = family
		ask = append(ask, attribute(attrFilter, filter(filterPeer, peer, -1, filterSize(peer)))...)
		found, err := c.request(byFamily, unix.NLM_F_DUMP, ask)
		if err != nil {
			return fmt.Errorf("listing connections: %w", err)
		}
		for _, s := range found {
			end := make([]byte, 8, 8+idSize)
			end[0], end[1] = s[0], unix.IPPROTO_TCP
			_, err := c.request(destroy, unix.NLM_F_ACK, append(end, s.id()...))
			switch {
			case errors.Is(err, unix.ENOENT): // it ended by itself
			case errors.Is(err, unix.EOPNOTSUPP):
				return fmt.Errorf("ending a connection (the kernel must have CONFIG_INET_DIAG_DESTROY): %w", err)
			case err != nil:
				return fmt.Errorf("ending a connection: %w", err)
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
		s.addr(id[4:20]) == local.Addr() && binary.BigEndian.Uint16(id) == local.Port() &&
		s.addr(id[20:36]) == remote.Addr() && binary.BigEndian.Uint16(id[2:]) == remote.Port()
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

// attribute is a netlink attribute; all of ours have a length that is a multiple of 4.
func attribute(kind uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(data)))
	return append(binary.NativeEndian.AppendUint16(b, kind), data...)
}

// request sends one request and returns the sockets in its answer.
func (c Conn) request(kind, flags uint16, body []byte) ([]socket, error) {
	b := binary.NativeEndian.AppendUint32(make([]byte, 0, 256), uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...) // sequence and port: one request at a time needs neither
	b = append(b, body...)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	size := 1 << 10 // one socket
	if flags&unix.NLM_F_DUMP != 0 {
		size = 1 << 15 // the most that the kernel puts into one packet of a list
	}
	var found []socket
	for {
		buf := make([]byte, size)
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		answers, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, fmt.Errorf("reading the kernel's answer: %w", err)
		}
		for _, m := range answers {
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				return found, nil
			case m.Header.Type == unix.NLMSG_ERROR:
				if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
					return nil, unix.Errno(errno)
				}
				return found, nil
			case len(m.Data) < 4+idSize:
				return nil, fmt.Errorf("the kernel's answer has %d bytes; expected %d", len(m.Data), 4+idSize)
			}
			found = append(found, socket(m.Data))
			if m.Header.Flags&unix.NLM_F_MULTI == 0 {
				return found, nil
			}
		}
	}
}
