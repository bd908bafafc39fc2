package metadata

import (
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"

	"taskmeta/internal/ecs"
)

// conns are the open connections by source address.
type conns struct {
	limit int // for one address

	mu sync.Mutex
	of map[netip.Addr]map[net.Conn]*conn
}

// add takes in a connection, unless its source has as many as it may.
func (cs *conns) add(raw net.Conn, c *conn) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	open := cs.of[c.client.Addr()]
	if len(open) >= cs.limit {
		return false
	}
	if open == nil {
		open = make(map[net.Conn]*conn)
		cs.of[c.client.Addr()] = open
	}
	open[raw] = c
	return true
}

// remove forgets a connection, if it was taken in.
func (cs *conns) remove(raw net.Conn) {
	addr := peer(raw.RemoteAddr().String()).Addr()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.of[addr], raw)
	if len(cs.of[addr]) == 0 {
		delete(cs.of, addr)
	}
}

// all is a copy of what is open now.
func (cs *conns) all() map[netip.Addr]map[net.Conn]*conn {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	all := maps.Clone(cs.of)
	for addr, open := range all {
		all[addr] = maps.Clone(open)
	}
	return all
}

// reset ends a connection. What is queued for it is dropped, not sent: the address may have
// another owner by the time it would arrive.
func reset(raw net.Conn) {
	if tcp, ok := raw.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // fails only on a connection that has ended
	}
	_ = raw.Close()
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
// other; the binding alone is looked at beside them.
type conn struct {
	client, server netip.AddrPort
	// binding is the one that the first request met, once the witness has confirmed it.
	binding atomic.Pointer[ecs.Binding]
	tenant  *tenant
	wire    *wire // nil if the listener is not Listener's
}

// isProbe reports whether what asks is no task but `ecs-resolver status`.
func (c *conn) isProbe() bool {
	b := c.binding.Load()
	return b != nil && b.IsProbe()
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
