package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"taskmeta/internal/backoff"
	"taskmeta/internal/metadata"
	"taskmeta/internal/netns"
)

// adminSocket is the name (FileDescriptorName=) under which systemd passes the admin
// listener; all others are for tasks.
const adminSocket = "admin"

// sockets are what the resolver listens on.
type sockets struct {
	api   []net.Listener
	admin net.Listener
}

// A listening is where sockets are opened.
type listening struct {
	tasks, operators *netns.NS
	// bridge is the one that tasks are heard on, "" for any interface.
	bridge string
	listen []string
	admin  string
	log    *slog.Logger
}

// open opens what the flags name, each kind in its network namespace, or takes what systemd
// passed in their place. Of what it passed, a socket in another namespace than that of the
// tasks hears none of them, as after the namespace was lost: it is left alone.
func (l *listening) open() (_ *sockets, err error) {
	s := &sockets{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	passed, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("taking systemd's sockets: %w", err)
	}
	for name, sockets := range passed {
		for _, socket := range sockets {
			switch {
			case name == adminSocket && s.admin == nil:
				s.admin = socket
			case l.hears(socket):
				s.api = append(s.api, socket)
			default:
				l.log.Warn("a socket that was passed is in another network namespace than the endpoint, and is not used", "addr", socket.Addr().String())
				_ = socket.Close()
			}
		}
	}
	listen := l.listen
	if len(listen) == 0 && len(s.api) == 0 {
		listen = []string{defaultListen}
	}
	for _, at := range listen {
		socket, err := l.openAPI(at)
		if err != nil {
			return nil, fmt.Errorf("--listen %s: %w", at, err)
		}
		s.api = append(s.api, socket)
	}
	if s.admin == nil {
		if s.admin, err = openAdmin(l.operators, l.admin); err != nil {
			return nil, fmt.Errorf("--admin %s: %w", l.admin, err)
		}
	}
	return s, nil
}

// hears reports whether a socket is in the namespace of the tasks. One that cannot be
// looked at is taken to be.
func (l *listening) hears(socket net.Listener) bool {
	raw, err := socket.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	is := l.tasks.ID()
	_ = raw.Control(func(fd uintptr) {
		if id, e := netns.OfSocket(int(fd)); e == nil {
			is = id
		}
	})
	return is == l.tasks.ID()
}

func (l *listening) openAPI(at string) (net.Listener, error) {
	if number, ok := strings.CutPrefix(at, "fd:"); ok {
		fd, err := strconv.ParseUint(number, 10, 31)
		if err != nil {
			return nil, usageError{errors.New("expected fd: and the number of an open socket, such as fd:3")}
		}
		file := os.NewFile(uintptr(fd), at)
		defer file.Close() // FileListener has its own copy
		socket, err := net.FileListener(file)
		if err == nil && !l.hears(socket) {
			err = fmt.Errorf("it is in another network namespace than the endpoint, %s: open it there, or choose another --netns", l.tasks.Path())
			_ = socket.Close()
		}
		return socket, err
	}
	if _, err := netip.ParseAddrPort(at); err != nil {
		return nil, usageError{errors.New("expected an address and a port, such as 169.254.170.2:80, or fd:3")}
	}
	// The time-outs of the server end a connection long before TCP's own probes would.
	config := net.ListenConfig{KeepAlive: -1}
	if l.bridge != "" {
		// Bound to the bridge first: another resolver may have the address on another bridge. Nor
		// need it stand on this one yet.
		config.Control = func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) {
				failed = errors.Join(unix.BindToDevice(int(fd), l.bridge), unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1))
			})
			return errors.Join(err, failed)
		}
	}
	return l.tasks.Listen(context.Background(), config, "tcp", at)
}

// openAdmin listens for operators: on loopback, or on a unix socket that only root opens.
func openAdmin(ns *netns.NS, at string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		// What an earlier run left would be in the way; one that still runs is not touched.
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			return nil, errors.New("another process listens there: is a resolver running already? End it, or choose another path")
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
		before := unix.Umask(0o177)
		defer unix.Umask(before)
		return net.Listen("unix", path)
	}
	addr, err := netip.ParseAddrPort(at)
	if err != nil || !addr.Addr().IsLoopback() {
		return nil, usageError{errors.New("expected a loopback address and a port, such as 127.0.0.1:51680, or unix:PATH")}
	}
	return listenOrWait(ns, addr)
}

func (s *sockets) close() {
	for _, l := range append(s.api, s.admin) {
		if l != nil {
			_ = l.Close()
		}
	}
}

// A steadyListener goes on after an Accept that has failed for a reason that passes: no
// descriptor or memory was free, or the connection that was to be accepted has failed. The
// clients wait meanwhile.
type steadyListener struct {
	net.Listener
	ctx context.Context // of serving: Accept gives up at its end
	log *slog.Logger
}

func (l steadyListener) Accept() (net.Conn, error) {
	pauses := backoff.Backoff{Max: time.Second}
	for warned := false; ; warned = true {
		c, err := l.Listener.Accept()
		if err == nil || !passes(err) {
			return c, err
		}
		if !warned {
			l.log.Warn("a connection cannot be accepted; trying again", "addr", l.Addr().String(), "err", err)
		}
		select {
		case <-time.After(pauses.Next()):
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
	}
}

// passes reports whether accept(2) may succeed later: the errors that it says to treat so, and
// those for want of something.
func passes(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains([]syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, syscall.ECONNABORTED, syscall.EPROTO,
		syscall.ENETDOWN, syscall.ENOPROTOOPT, syscall.EHOSTDOWN, syscall.ENONET, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
	}, errno)
}

// maxConns is how many connections of tasks may be open together: half of the descriptors
// that the process may have. The rest is for Docker, the bindings, the witness and netlink,
// without which no connection could be answered.
func maxConns() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	return int(min(limit.Cur/2, metadata.DefaultMaxAllConns)), nil
}

// serveOn serves until the listener is closed.
func serveOn(server *http.Server, l net.Listener) error {
	if err := server.Serve(l); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	return nil
}
