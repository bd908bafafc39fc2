package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"taskmeta/internal/netns"
	"taskmeta/internal/sockdiag"
)

// A lateListener begins to listen in Accept, as soon as no client has its port. The kernel
// gives clients ports of the same range (ip_local_port_range), and holds one for a minute
// after its connection has ended (TIME_WAIT).
type lateListener struct {
	ns     *netns.NS
	at     netip.AddrPort
	closed chan struct{}

	mu     sync.Mutex // held while it is opened or closed
	opened net.Listener
}

// listenOrWait listens at an address of a network namespace, now or as soon as the clients
// that have its port are gone. That a server has it is an error.
func listenOrWait(ns *netns.NS, at netip.AddrPort) (net.Listener, error) {
	l := &lateListener{ns: ns, at: at, closed: make(chan struct{})}
	switch opened, err := l.open(); {
	case err != nil:
		return nil, err
	case opened != nil:
		return opened, nil
	}
	return l, nil
}

// open returns no listener and no error while a client has the port.
func (l *lateListener) open() (net.Listener, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	if l.opened != nil {
		return l.opened, nil
	}
	opened, err := l.ns.Listen(context.Background(), net.ListenConfig{}, "tcp", l.at.String())
	switch {
	case err == nil:
		l.opened = opened
	case errors.Is(err, syscall.EADDRINUSE):
		servers, e := listeners(l.ns)
		if e != nil || slices.ContainsFunc(servers, l.shares) {
			return nil, errors.Join(err, e)
		}
		return nil, nil
	}
	return opened, err
}

// listeners are the addresses at which TCP sockets of a network namespace listen.
func listeners(ns *netns.NS) ([]netip.AddrPort, error) {
	c, err := sockdiag.Open(ns)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Listeners()
}

// shares reports whether a server at that address has the port at ours too.
func (l *lateListener) shares(server netip.AddrPort) bool {
	addr := server.Addr()
	return server.Port() == l.at.Port() && (addr == l.at.Addr() || addr.IsUnspecified())
}

func (l *lateListener) Accept() (net.Conn, error) {
	for {
		switch opened, err := l.open(); {
		case err != nil:
			return nil, err
		case opened != nil:
			return opened.Accept()
		}
		select {
		case <-l.closed:
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (l *lateListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

func (l *lateListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return net.ErrClosed
	default:
		close(l.closed)
	}
	if l.opened == nil {
		return nil
	}
	return l.opened.Close()
}
