package metadata

import (
	"net"
	"net/http"
	"net/netip"
	"sync"

	"taskmeta/internal/ecs"
)

// conns are the open connections by source address.
type conns struct {
	limit int // for one address

	mu sync.Mutex
	of map[netip.Addr]map[net.Conn]struct{}
}

// add takes in a connection, unless its source has as many as it may.
func (cs *conns) add(c net.Conn) bool {
	addr := peer(c.RemoteAddr().String()).Addr()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	open := cs.of[addr]
	if len(open) >= cs.limit {
		return false
	}
	if open == nil {
		open = make(map[net.Conn]struct{})
		cs.of[addr] = open
	}
	open[c] = struct{}{}
	return true
}

// remove forgets a connection, if it was taken in.
func (cs *conns) remove(c net.Conn) {
	addr := peer(c.RemoteAddr().String()).Addr()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.of[addr], c)
	if len(cs.of[addr]) == 0 {
		delete(cs.of, addr)
	}
}

// reset ends the connections of one source address. What is queued for them is dropped,
// not sent: the address may have another owner by the time it would arrive.
func (cs *conns) reset(addr netip.Addr) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.of[addr] {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // fails only on a connection that has ended
		}
		_ = c.Close()
	}
}

// peer is the address and port that a connection came from. An IPv4 address mapped into
// IPv6 counts as IPv4. The zero value stands for all that names no task: text that is no
// address, and an address with a zone, which means nothing without its link.
func peer(remote string) netip.AddrPort {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil || ap.Addr().Zone() != "" {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// A conn is what is known about a connection. Its requests are served one after the
// other, so it needs no lock.
type conn struct {
	client, server netip.AddrPort
	// binding is the one that the first request met, once the witness has confirmed it.
	binding *ecs.Binding
	tenant  *tenant
}

type connKey struct{}

func newConn(remote string, local net.Addr) *conn {
	c := &conn{client: peer(remote)}
	if tcp, ok := local.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		c.server = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return c
}

// connOf is the connection that r came on. Under another server than HTTPServer's each
// request counts as a connection of its own.
func connOf(r *http.Request) *conn {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		return c
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return newConn(r.RemoteAddr, local)
}
