package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

// own is the test's own network namespace.
func own(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.Own()
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// Sockets listen in the namespaces that their opener names, wherever it is itself.
func TestSocketsAreOpenedInTheNamedNamespaces(t *testing.T) {
	t.Parallel()
	caller, tasks, operators := testnet.T(t), testnet.T(t), testnet.T(t)
	var in [2]*netns.NS
	for i, host := range []*testnet.Namespace{tasks, operators} {
		ns, err := netns.Open(host.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		in[i] = ns
	}
	const api, page = "169.254.170.2:80", "127.0.0.1:51680"
	tasks.Sh(t, "ip link add name ecs-bridge type bridge")
	err := caller.Do(func() error {
		s, err := (&listening{tasks: in[0], operators: in[1], bridge: "ecs-bridge", listen: []string{api}, admin: page, log: slog.Default()}).open()
		if err != nil {
			return err
		}
		t.Cleanup(s.close)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[*testnet.Namespace][]netip.AddrPort{
		caller: nil, tasks: {netip.MustParseAddrPort(api)}, operators: {netip.MustParseAddrPort(page)},
	} {
		ns, err := netns.Open(host.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		if got, err := listeners(ns); err != nil || !slices.Equal(got, want) {
			t.Errorf("listening at %v, %v; want %v", got, err, want)
		}
	}
}

// The page's socket in the file system is root's alone, and what an earlier run left in
// its place is no obstacle.
func TestAdminSocketIsRootsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := openAdmin(own(t), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s has the mode %v (%v), want 0600", path, info.Mode(), err)
	}
}

// The kernel gives clients ports of the page's range, and keeps one for a minute after its
// connection has ended. That does not keep the resolver from its start, and the page comes
// when the port is free.
func TestAdminWaitsForAClientsPort(t *testing.T) {
	t.Parallel()
	at, client := portOfAClient(t, "127.77.0.1")
	l, err := openAdmin(own(t), at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	if got := l.Addr().String(); got != at {
		t.Errorf("it says that it is at %s, want %s", got, at)
	}
	if err := errors.Join(client.SetLinger(0), client.Close()); err != nil { // without the minute
		t.Fatal(err)
	}
	testnet.Await(t, "the page", func() error {
		c, err := net.Dial("tcp", at)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err := <-accepted; err != nil {
		t.Error(err)
	}
}

// A page that waits for its port ends with the resolver.
func TestAdminStopsWaiting(t *testing.T) {
	t.Parallel()
	at, _ := portOfAClient(t, "127.77.0.2")
	l, err := openAdmin(own(t), at)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept says %v, want %v", err, net.ErrClosed)
	}
}

// A server at the page's address is told at once, and so is one that came while the page
// waited for its port.
func TestAdminDoesNotWaitForAServer(t *testing.T) {
	t.Parallel()
	at, client := portOfAClient(t, "127.77.0.3")
	late, err := openAdmin(own(t), at)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := errors.Join(client.SetLinger(0), client.Close()); err != nil {
		t.Fatal(err)
	}
	server, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := late.Accept(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), at) {
		t.Errorf("Accept says %v, want %v and the address %s", err, syscall.EADDRINUSE, at)
	}
	if _, err := openAdmin(own(t), at); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("openAdmin says %v, want %v", err, syscall.EADDRINUSE)
	}
}

// portOfAClient returns the local end of a connection that was made from there. The address
// is nobody else's: at 127.0.0.1 there are the ends of other tests' connections.
func portOfAClient(t *testing.T, addr string) (at string, client *net.TCPConn) {
	t.Helper()
	server, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	c, err := from.Dial("tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.LocalAddr().String(), c.(*net.TCPConn)
}

// What listens is found in the kernel's table of sockets, IPv6 too, and what does not is not.
func TestListeners(t *testing.T) {
	t.Parallel()
	ns := own(t)
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().(*net.TCPAddr).AddrPort()
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		if all, err := listeners(ns); err != nil || !slices.Contains(all, addr) {
			t.Errorf("%s is not among %v (%v)", addr, all, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if all, err := listeners(ns); err != nil || slices.Contains(all, addr) {
			t.Errorf("%s is still among %v (%v)", addr, all, err)
		}
	}
}

// failingListener fails with each of its errors before it accepts.
type failingListener struct {
	net.Listener
	errs []error
}

func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	return l.Listener.Accept()
}

// An Accept that fails for a while does not end serving. One that fails for good does, and so
// does the end of the listener, also in a pause.
func TestServingGoesOnWhenAcceptFails(t *testing.T) {
	t.Parallel()
	listen := func(errs ...error) (*failingListener, string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return &failingListener{l, errs}, l.Addr().String()
	}
	start := func(ctx context.Context, l net.Listener) chan error {
		server := &http.Server{Handler: http.NotFoundHandler()}
		t.Cleanup(func() { server.Close() })
		done := make(chan error, 1)
		go func() { done <- serveOn(server, steadyListener{l, ctx, slog.New(slog.DiscardHandler)}) }()
		return done
	}

	l, at := listen(syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.EPERM, syscall.EPROTO)
	done := start(t.Context(), l)
	resp, err := http.Get("http://" + at)
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("after Accept has failed: %v, %v", resp, err)
	}
	l.Close()
	if err := <-done; err != nil {
		t.Errorf("at its end: %v", err)
	}

	l, _ = listen(syscall.EINVAL)
	if err := <-start(t.Context(), l); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("one that does not listen: %v, want %v", err, syscall.EINVAL)
	}

	ctx, cancel := context.WithCancel(t.Context())
	l, _ = listen(slices.Repeat([]error{syscall.EMFILE}, 1000)...)
	done = start(ctx, l)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended in a pause: %v", err)
	}
}
