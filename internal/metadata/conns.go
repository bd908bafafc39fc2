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
	total int // for all together

	mu    sync.Mutex // for what follows
	held  int        // connections, of all sources
	count uint64     // of those that were taken in
	of    map[netip.Addr]map[net.Conn]*conn
}

// add takes in a connection, unless its source has as many as it may, or all together are
// as many as they may be and no source has more than this one. If one has, a connection of
// the source that has most is taken out in its place: none can keep the others out.
func (cs *conns) add(raw net.Conn, c *conn) (ok bool, ended net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	addr := c.client.Addr()
	own := len(cs.of[addr])
	if own >= cs.limit {
		return false, nil
	}
	if cs.held >= cs.total {
		if ended = cs.needless(own + 1); ended == nil {
			return false, nil
		}
		cs.drop(peer(ended.RemoteAddr().String()).Addr(), ended)
	}
	if cs.of[addr] == nil {
		cs.of[addr] = make(map[net.Conn]*conn)
	}
	cs.count++
	c.number = cs.count
	cs.of[addr][raw] = c
	cs.held++
	return true, ended
}

// needless is a connection of the source that has most, for one that would have own: the
// oldest of those on which nothing is asked, or else the oldest, if its source has more
// even without it. It is nil if there is none.
func (cs *conns) needless(own int) (raw net.Conn) {
	var most map[net.Conn]*conn
	for _, open := range cs.of {
		if len(open) > len(most) {
			most = open
		}
	}
	if len(most) < own {
		return nil
	}
	var oldest *conn
	for candidate, c := range most {
		asks := c.asks.Load()
		if asks && len(most) <= own {
			continue
		}
		if oldest == nil || oldest.asks.Load() && !asks || oldest.asks.Load() == asks && c.number < oldest.number {
			raw, oldest = candidate, c
		}
	}
	return raw
}

// remove forgets a connection, if it was taken in.
func (cs *conns) remove(raw net.Conn) {
	addr := peer(raw.RemoteAddr().String()).Addr()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.drop(addr, raw)
}

func (cs *conns) drop(addr netip.Addr, raw net.Conn) {
	if _, ok := cs.of[addr][raw]; !ok {
		return
	}
	cs.held--
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
	number         uint64      // of those that were taken in, one after the other
	asks           atomic.Bool // a request is being answered
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
