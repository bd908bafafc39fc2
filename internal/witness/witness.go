// Package witness asks a task's own kernel state whether it made a connection. A source
// address can be forged by whoever can reach the right link; a socket in the network
// namespace of the task that has the address cannot.
package witness

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
	"taskmeta/internal/sockdiag"
)

// ErrNoSocket: the namespace was asked, and it has no such connection. The connection
// was forged, is over, or comes from a namespace behind the task's own, of which only
// that one has the socket.
var ErrNoSocket = fmt.Errorf("%w: the task's network namespace has no socket at the client's end of the connection", ecs.ErrNotTheTasks)

// ErrReplaced: the namespace at the binding's path is not the one that was attached. The
// task is gone.
var ErrReplaced = fmt.Errorf("%w: another network namespace has come to the path of the task's", ecs.ErrNotTheTasks)

const (
	// keepFor is how long a socket is kept after its last use. It keeps the task's namespace,
	// and so the task's interface, in being.
	keepFor = time.Second
	// keepMost is how many are kept of one binding: as many as ask at the same moment.
	keepMost = 4
)

// A Witness looks into network namespaces, for which it needs CAP_SYS_ADMIN. It keeps its
// socket in one for a moment, since to open one takes four times as long as to ask: it is
// for tasks that make one connection after the other. It may be used by many goroutines at
// once.
type Witness struct {
	mu       sync.Mutex
	sockets  map[*ecs.Binding][]keptSocket // that nobody uses at present
	sweeping bool
}

type keptSocket struct {
	conn sockdiag.Conn
	used time.Time
}

// New makes a witness.
func New() *Witness { return &Witness{sockets: make(map[*ecs.Binding][]keptSocket)} }

// Seen looks for the client's end of an established connection in the network namespace
// of a binding: nil if it is there, [ErrNoSocket] or [ErrReplaced], both of which are
// [ecs.ErrNotTheTasks], if it is not, another error if the namespace cannot be asked. The server is the address that the client
// connected to, before any translation. What is kept is the binding's: one that takes its
// place, be it of the same path, is another.
func (w *Witness) Seen(b *ecs.Binding, client, server netip.AddrPort) error {
	conn, ok := w.take(b)
	if !ok {
		var err error
		if conn, err = open(b); err != nil {
			return fmt.Errorf("asking network namespace %s: %w", b.Netns, err)
		}
	}
	seen, err := conn.Connected(client, server)
	if err != nil {
		return fmt.Errorf("asking network namespace %s: %w", b.Netns, errors.Join(err, conn.Close()))
	}
	if err := w.put(b, conn); err != nil {
		return fmt.Errorf("asking network namespace %s: %w", b.Netns, err)
	}
	if !seen {
		return ErrNoSocket
	}
	return nil
}

// open opens a socket in a binding's namespace.
func open(b *ecs.Binding) (sockdiag.Conn, error) {
	ns, err := netns.Open(b.Netns)
	if err != nil {
		return sockdiag.Conn{}, err
	}
	defer ns.Close()
	if b.NetnsID != 0 && b.NetnsID != ns.ID().Ino {
		return sockdiag.Conn{}, ErrReplaced
	}
	return sockdiag.Open(ns)
}

func (w *Witness) take(b *ecs.Binding) (sockdiag.Conn, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.sockets[b]
	if len(kept) == 0 {
		return sockdiag.Conn{}, false
	}
	last := len(kept) - 1
	w.sockets[b] = kept[:last]
	return kept[last].conn, true
}

// put keeps the socket, unless there are enough of the binding already.
func (w *Witness) put(b *ecs.Binding, conn sockdiag.Conn) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sockets[b]) >= keepMost {
		return conn.Close()
	}
	w.sockets[b] = append(w.sockets[b], keptSocket{conn, time.Now()})
	if !w.sweeping {
		w.sweeping = true
		time.AfterFunc(keepFor, w.sweep)
	}
	return nil
}

// sweep closes the sockets that have not been used for so long, and looks again later if
// there are others.
func (w *Witness) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for b, kept := range w.sockets {
		// The last one was used last.
		for len(kept) > 0 && time.Since(kept[0].used) >= keepFor {
			_ = kept[0].conn.Close() // a socket that is only closed does not fail
			kept = kept[1:]
		}
		if w.sockets[b] = kept; len(kept) == 0 {
			delete(w.sockets, b)
		}
	}
	if w.sweeping = len(w.sockets) > 0; w.sweeping {
		time.AfterFunc(keepFor, w.sweep)
	}
}
