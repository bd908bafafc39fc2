package metadata

import (
	"net"
)

// writeBuffer is how much net/http gathers of an answer before it writes.
const writeBuffer = 4 << 10

// Listener makes the connections of a TCP listener such that a long answer is written in
// one piece, where net/http alone writes what fills its buffer and then the rest.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return &wire{TCPConn: tcp}, err
	}
	return c, err
}

// A wire is a connection whose handler says when more than one write is to come. It is
// written to by one goroutine at a time.
type wire struct {
	*net.TCPConn
	more bool // after the next write comes another
	held []byte
}

// expect tells that an answer with a body of that length comes next. One that does not fit
// into net/http's buffer, for its header comes before it, is more than one write.
func (w *wire) expect(body int) {
	if w != nil {
		w.more = body >= writeBuffer
	}
}

// Write writes p, behind what it has kept, or keeps p if another write is to come.
func (w *wire) Write(p []byte) (int, error) {
	if w.more {
		w.more = false
		w.held = append(w.held[:0], p...)
		return len(p), nil
	}
	if len(w.held) == 0 {
		return w.TCPConn.Write(p)
	}
	both := net.Buffers{w.held, p}
	w.held = w.held[:0]
	_, err := both.WriteTo(w.TCPConn)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
