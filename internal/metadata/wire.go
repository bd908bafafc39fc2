package metadata

import (
	"net"
)

// writeBuffer is how much net/http gathers of an answer before it writes.
const writeBuffer = 4 << 10

// Listener makes the connections of a TCP listener such that a long answer is one write,
// where net/http makes two: one when its buffer is full, and one for the rest.
//
// A write to a task takes the kernel some 10 µs, because it carries the packets through the
// bridge to the receiving socket. Without this, the answer for a task of ten containers
// (9 KB) takes a quarter more processor time, and the resolver serves 0.75 to 0.8 times the
// requests of bare net/http, with it 0.9 to 1.0 times (go run
// ./internal/dev/bench/resolver -only load, "16 kept").
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return &wire{TCPConn: tcp}, err
	}
	return c, err
}

// A wire is a connection whose handler announces an answer that takes more than one write.
// One goroutine at a time writes to it.
type wire struct {
	*net.TCPConn
	more bool   // another write follows the next one
	kept []byte // the first write of an answer whose second has not come yet; used again
}

// expect announces an answer with a body of that length. The header comes first, so a body
// as long as net/http's buffer does not fit into it.
func (w *wire) expect(body int) {
	if w != nil {
		w.more = body >= writeBuffer
	}
}

// Write keeps p if another write follows, and otherwise writes what it has kept and p.
func (w *wire) Write(p []byte) (int, error) {
	keep := w.more && len(p) <= writeBuffer
	w.more = false
	if keep {
		w.kept = append(w.kept, p...)
		return len(p), nil
	}
	if len(w.kept) == 0 {
		return w.TCPConn.Write(p)
	}
	both := net.Buffers{w.kept, p}
	w.kept = w.kept[:0]
	if _, err := both.WriteTo(w.TCPConn); err != nil {
		return 0, err
	}
	return len(p), nil
}
