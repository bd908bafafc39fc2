package witness

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"taskmeta/internal/ecs"
	"taskmeta/internal/sockdiag"
)

const (
	// keepFor is how long a socket is kept after its last use. It keeps the task's namespace,
	// and so the task's interface, in being.
	keepFor = time.Second
	// keepMost is how many are kept of one binding: as many as ask at the same moment.
	keepMost = 4
)

// A Keeper is a [Witness] that keeps its socket in a task's namespace for a moment, since
// to open one takes four times as long as to ask: it is for tasks that make one connection
// after the other. It may be used by many goroutines at once.
type Keeper struct {
	w *Witness

	mu       sync.Mutex
	sockets  map[*ecs.Binding][]keptSocket // that nobody uses at present
	sweeping bool
}

type keptSocket struct {
	conn sockdiag.Conn
	used time.Time
}

// Keep makes a Keeper. It holds nothing that needs to be closed.
func Keep(w *Witness) *Keeper {
	return &Keeper{w: w, sockets: make(map[*ecs.Binding][]keptSocket)}
}

// Seen is [Witness.Seen] for the namespace of a binding. What is kept is the binding's: one
// that takes its place, be it of the same path, is another.
func (k *Keeper) Seen(b *ecs.Binding, client, server netip.AddrPort) error {
	conn, ok := k.take(b)
	if !ok {
		var err error
		if conn, err = k.w.open(b.Netns); err != nil {
			return fmt.Errorf("asking network namespace %s: %w", b.Netns, err)
		}
	}
	seen, err := conn.Connected(client, server)
	if err != nil {
		// What is still to be read from it would be taken for the next answer.
		return fmt.Errorf("asking network namespace %s: %w", b.Netns, errors.Join(err, conn.Close()))
	}
	if err := k.put(b, conn); err != nil {
		return fmt.Errorf("asking network namespace %s: %w", b.Netns, err)
	}
	if !seen {
		return ErrNoSocket
	}
	return nil
}

func (k *Keeper) take(b *ecs.Binding) (sockdiag.Conn, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	kept := k.sockets[b]
	if len(kept) == 0 {
		return sockdiag.Conn{}, false
	}
	last := len(kept) - 1
	k.sockets[b] = kept[:last]
	return kept[last].conn, true
}

// put keeps the socket, unless there are enough of the binding already.
func (k *Keeper) put(b *ecs.Binding, conn sockdiag.Conn) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.sockets[b]) >= keepMost {
		return conn.Close()
	}
	k.sockets[b] = append(k.sockets[b], keptSocket{conn, time.Now()})
	if !k.sweeping {
		k.sweeping = true
		time.AfterFunc(keepFor, k.sweep)
	}
	return nil
}

// sweep closes the sockets that have not been used for so long, and looks again later if
// there are others.
func (k *Keeper) sweep() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for b, kept := range k.sockets {
		// The last one was used last.
		for len(kept) > 0 && time.Since(kept[0].used) >= keepFor {
			_ = kept[0].conn.Close() // a socket that is only closed does not fail
			kept = kept[1:]
		}
		if k.sockets[b] = kept; len(kept) == 0 {
			delete(k.sockets, b)
		}
	}
	if k.sweeping = len(k.sockets) > 0; k.sweeping {
		time.AfterFunc(keepFor, k.sweep)
	}
}
