package witness_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/witness"
)

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// accept listens in the namespace on a loopback address and returns the connection that
// dial makes to it, both ends.
func accept(t testing.TB, ns *testnet.Namespace, listen string, dial func(address string) (net.Conn, error)) (client, server net.Conn) {
	t.Helper()
	l, err := ns.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = dial(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// dialMapped connects to an IPv4 address with an IPv6 socket, as some runtimes do.
func dialMapped(ns *testnet.Namespace) func(string) (net.Conn, error) {
	return func(address string) (c net.Conn, err error) {
		to := netip.MustParseAddrPort(address)
		err = ns.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), "client")
			defer f.Close()
			mapped := netip.AddrFrom16(to.Addr().As16())
			if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: mapped.As16()}); err != nil {
				return err
			}
			c, err = net.FileConn(f)
			return err
		})
		return c, err
	}
}

func TestSeen(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	w, b := witness.New(), &ecs.Binding{Netns: ns.Path()}
	dial := func(d net.Dialer, network string) func(string) (net.Conn, error) {
		return func(address string) (c net.Conn, err error) {
			err = ns.Do(func() error {
				c, err = d.Dial(network, address)
				return err
			})
			return c, err
		}
	}
	bound := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "lo") }), err)
	}}
	tests := map[string]struct {
		listen string
		dial   func(string) (net.Conn, error)
	}{
		"IPv4":                       {"127.0.0.1:0", dial(net.Dialer{}, "tcp4")},
		"IPv6":                       {"[::1]:0", dial(net.Dialer{}, "tcp6")},
		"IPv4 by an IPv6 socket":     {"127.0.0.1:0", dialMapped(ns)},
		"bound to its interface":     {"127.0.0.1:0", dial(bound, "tcp4")},
		"bound, with IPv6 addresses": {"[::1]:0", dial(bound, "tcp6")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, server := accept(t, ns, tt.listen, tt.dial)
			from, to := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
			if err := w.Seen(b, from, to); err != nil {
				t.Error(err)
			}
			if err := client.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := w.Seen(b, from, to); err != nil {
				t.Errorf("after the client's last byte: %v", err)
			}
			nearby := netip.AddrPortFrom(from.Addr(), from.Port()^1)
			if err := w.Seen(b, nearby, to); !errors.Is(err, witness.ErrNoSocket) {
				t.Errorf("another port: %v; want ErrNoSocket", err)
			}
			if err := w.Seen(&ecs.Binding{Netns: testnet.T(t).Path()}, from, to); !errors.Is(err, witness.ErrNoSocket) {
				t.Errorf("another namespace: %v; want ErrNoSocket", err)
			}
			server.Close()
			client.Close()
			if err := w.Seen(b, from, to); !errors.Is(err, witness.ErrNoSocket) {
				t.Errorf("closed: %v; want ErrNoSocket", err)
			}
		})
	}
}

// A forged connection that takes the number of a port on which the task listens, or from
// which it has asked and not been answered, has no socket at its end.
func TestSocketsThatAreNoConnection(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	w, b := witness.New(), &ecs.Binding{Netns: ns.Path()}
	server := netip.MustParseAddrPort("127.0.0.2:80")
	l, err := ns.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := w.Seen(b, addrPort(l.Addr()), server); !errors.Is(err, witness.ErrNoSocket) {
		t.Errorf("a port that is listened on: %v; want ErrNoSocket", err)
	}

	err = ns.Do(func() error {
		listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(listener) })
		if err := unix.Bind(listener, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 2}}); err != nil {
			return err
		}
		if err := unix.Listen(listener, 0); err != nil {
			return err
		}
		// A backlog of 0 takes one connection and leaves those after it unanswered.
		var fd int
		for range 4 {
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(fd) })
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 2}}); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		state, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return err
		}
		if state.State != unix.BPF_TCP_SYN_SENT {
			t.Errorf("the socket is in state %d; want SYN_SENT, %d", state.State, unix.BPF_TCP_SYN_SENT)
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		from := name.(*unix.SockaddrInet4)
		asking := netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))
		if err := w.Seen(b, asking, server); !errors.Is(err, witness.ErrNoSocket) {
			t.Errorf("a socket that was not answered: %v; want ErrNoSocket", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestANamespaceThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	testnet.Need(t)
	w := witness.New()
	a := netip.MustParseAddrPort("127.0.0.1:1")
	file := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{filepath.Join(t.TempDir(), "gone"): os.ErrNotExist, file: unix.EINVAL} {
		if err := w.Seen(&ecs.Binding{Netns: path}, a, a); !errors.Is(err, want) || errors.Is(err, witness.ErrNoSocket) {
			t.Errorf("%s: %v; want %v", path, err, want)
		}
	}
}

// The threads that look into namespaces come back.
func TestSeenLeavesNoThreadElsewhere(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	w := witness.New()
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	client, _ := accept(t, ns, "127.0.0.1:0", func(a string) (net.Conn, error) {
		return ns.DialContext(context.Background(), "tcp", a)
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if err := w.Seen(&ecs.Binding{Netns: ns.Path()}, addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())); err != nil {
					t.Error(err)
					return
				}
				if now, err := os.Readlink("/proc/thread-self/ns/net"); now != home {
					t.Errorf("afterwards the thread is in %s, %v; want %s", now, err, home)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkSeen(b *testing.B) {
	ns := testnet.T(b)
	w := witness.New()
	client, _ := accept(b, ns, "127.0.0.1:0", func(a string) (net.Conn, error) {
		return ns.DialContext(context.Background(), "tcp", a)
	})
	from, to, path := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr()), ns.Path()
	for b.Loop() {
		if err := w.Seen(&ecs.Binding{Netns: path}, from, to); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeenAgain(b *testing.B) {
	ns := testnet.T(b)
	w := witness.New()
	client, _ := accept(b, ns, "127.0.0.1:0", func(a string) (net.Conn, error) {
		return ns.DialContext(context.Background(), "tcp", a)
	})
	from, to, binding := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr()), &ecs.Binding{Netns: ns.Path()}
	for b.Loop() {
		if err := w.Seen(binding, from, to); err != nil {
			b.Fatal(err)
		}
	}
}
