package metadata

import (
	"net"
	"sync"
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
	more bool    // after the next write comes another
	kept *buffer // nil if nothing is
}

// A buffer is the first part of an answer.
type buffer struct {
	bytes [writeBuffer]byte
	used  int
}

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// expect tells that an answer with a body of that length comes next. One that does not fit
// into net/http's buffer, for its header comes before it, is more than one write.
func (w *wire) expect(body int) {
	if w != nil {
		w.more = body >= writeBuffer
	}
}

// Write writes p, behind what it has kept, or keeps p if another write is to come.
func (w *wire) Write(p []byte) (int, error) {
	keep := w.more && len(p) <= writeBuffer
	w.more = false
	if keep {
		w.kept = buffers.Get().(*buffer)
		w.kept.used = copy(w.kept.bytes[:], p)
		return len(p), nil
	}
	if w.kept == nil {
		return w.TCPConn.Write(p)
	}
	both := net.Buffers{w.kept.bytes[:w.kept.used], p}
	_, err := both.WriteTo(w.TCPConn)
	buffers.Put(w.kept)
	w.kept = nil
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
