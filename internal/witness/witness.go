// Package witness asks a task's own kernel state whether it made a connection. A source
// address can be forged by whoever can reach the right link; a socket in the network
// namespace of the task that has the address cannot.
package witness

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"taskmeta/internal/sockdiag"
)

// ErrNoSocket: the namespace was asked, and it has no such connection. The connection
// was forged, is over, or comes from a namespace behind the task's own, of which only
// that one has the socket.
var ErrNoSocket = errors.New("the task's network namespace has no socket at the client's end of the connection")

// A Witness looks into network namespaces. It needs CAP_SYS_ADMIN. It may be used by
// many goroutines at once.
type Witness struct{ home int }

// New remembers the network namespace of the calling thread as the one to come back to.
func New() (*Witness, error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the thread's network namespace: %w", err)
	}
	return &Witness{home: home}, nil
}

// Close lets go of the namespace.
func (w *Witness) Close() error { return unix.Close(w.home) }

// Seen looks for the client's end of an established connection in the network namespace
// at the path netns: nil if it is there, [ErrNoSocket] if it is not, another error if the
// namespace cannot be asked. The server is the address that the client connected to,
// before any translation. Each call opens the namespace anew: a socket kept in it would
// keep it, and its interfaces, in being.
func (w *Witness) Seen(netns string, client, server netip.AddrPort) error {
	conn, err := w.open(netns)
	if err != nil {
		return fmt.Errorf("asking network namespace %s: %w", netns, err)
	}
	seen, err := conn.Connected(client, server)
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("asking network namespace %s: %w", netns, err)
	}
	if !seen {
		return ErrNoSocket
	}
	return nil
}

// open opens a socket in a namespace. A thread that cannot be brought back stays locked
// to its goroutine and ends with it.
func (w *Witness) open(netns string) (conn sockdiag.Conn, err error) {
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return conn, err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return conn, fmt.Errorf("entering it: %w", err)
	}
	conn, err = sockdiag.Open()
	if back := unix.Setns(w.home, unix.CLONE_NEWNET); back != nil {
		return conn, errors.Join(err, fmt.Errorf("coming back from it: %w", back))
	}
	runtime.UnlockOSThread()
	return conn, err
}
