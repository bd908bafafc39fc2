package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

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

// openSockets opens what the flags name, each kind in its network namespace, or takes what
// systemd passed in their place. An address for tasks need not stand on an interface yet if
// there will be a bridge to carry it.
func openSockets(tasks, operators *netns.NS, listen []string, adminAt string, bridged bool) (_ *sockets, err error) {
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
	for name, ls := range passed {
		for _, l := range ls {
			if name == adminSocket && s.admin == nil {
				s.admin = l
			} else {
				s.api = append(s.api, l)
			}
		}
	}
	if len(listen) == 0 && len(s.api) == 0 {
		listen = []string{defaultListen}
	}
	for _, at := range listen {
		l, err := openAPI(tasks, at, bridged)
		if err != nil {
			return nil, fmt.Errorf("--listen %s: %w", at, err)
		}
		s.api = append(s.api, l)
	}
	if s.admin == nil {
		if s.admin, err = openAdmin(operators, adminAt); err != nil {
			return nil, fmt.Errorf("--admin %s: %w", adminAt, err)
		}
	}
	return s, nil
}

func openAPI(ns *netns.NS, at string, bridged bool) (net.Listener, error) {
	if number, ok := strings.CutPrefix(at, "fd:"); ok {
		fd, err := strconv.ParseUint(number, 10, 31)
		if err != nil {
			return nil, usageError{errors.New("expected fd: and the number of an open socket, such as fd:3")}
		}
		file := os.NewFile(uintptr(fd), at)
		defer file.Close() // FileListener has its own copy
		return net.FileListener(file)
	}
	if _, err := netip.ParseAddrPort(at); err != nil {
		return nil, usageError{errors.New("expected an address and a port, such as 169.254.170.2:80, or fd:3")}
	}
	// The time-outs of the server end a connection long before TCP's own probes would.
	config := net.ListenConfig{KeepAlive: -1}
	if bridged {
		config.Control = func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
			return errors.Join(err, failed)
		}
	}
	return ns.Listen(context.Background(), config, "tcp", at)
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

// serveOn serves until the listener is closed.
func serveOn(server *http.Server, l net.Listener) error {
	if err := server.Serve(l); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	return nil
}
