package attack

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// A wire sends and receives whole frames at an interface.
type wire struct{ fd, index int }

// tap opens an interface in a namespace for frames of one EtherType, or of all with
// unix.ETH_P_ALL, until the end of the test.
func tap(t testing.TB, ns *testnet.Namespace, ifname string, etherType int) *wire {
	t.Helper()
	w := &wire{fd: -1}
	err := ns.Do(func() error {
		link, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		w.index = link.Index
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: uint16(etherType)<<8 | uint16(etherType)>>8, Ifindex: w.index})
	})
	if err != nil {
		t.Fatalf("opening %s for frames: %v", ifname, err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// send puts a frame on the wire; one that finds no room is as good as one that was lost.
func (w *wire) send(t testing.TB, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		if n := 60 - len(f); n > 0 {
			f = append(f, make([]byte, n)...)
		}
		err := unix.Sendto(w.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6})
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) {
			t.Fatalf("sending a frame: %v", err)
		}
	}
}

// receive gives every frame that comes in to fn, until it is content or the time is over.
func (w *wire) receive(t testing.TB, until time.Time, fn func(frame []byte) bool) bool {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		left := time.Until(until)
		if left < 0 {
			left = 0 // what is there is looked at
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("waiting for a frame: %v", err)
		}
		if ready == 0 && left == 0 {
			return false
		}
		if ready == 0 {
			continue
		}
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			t.Fatalf("receiving a frame: %v", err)
		}
		// The socket sees what it sends, too.
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if fn(buf[:n]) {
			return true
		}
		if time.Now().After(until) {
			return false
		}
	}
}

// hears waits for a frame that has the mark in it.
func (w *wire) hears(t testing.TB, until time.Time, mark []byte) bool {
	t.Helper()
	return w.receive(t, until, func(frame []byte) bool { return bytes.Contains(frame, mark) })
}
