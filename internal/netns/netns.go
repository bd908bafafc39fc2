// Package netns is the network namespaces of the machine: what tells them apart, and how to
// act in one. It imports no other package of ours.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// An ID tells network namespaces apart, whatever their paths.
type ID struct{ Dev, Ino uint64 }

// Identify returns the ID of the namespace at a path.
func Identify(path string) (ID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return ID{st.Dev, st.Ino}, nil
}

// Path is the path of the namespace that a process is in.
func Path(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// An NS is an open network namespace: it exists until it is closed, whoever else leaves it.
// Many goroutines may use it at once.
type NS struct {
	path string
	fd   int
	id   ID
}

// Open opens the namespace at a path.
func Open(path string) (*NS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening network namespace %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("looking at network namespace %s: %w", path, err)
	}
	return &NS{path, fd, ID{st.Dev, st.Ino}}, nil
}

// Own opens the process's own namespace: every thread is in it that is not in [NS.Do]. It is
// opened once, and stays open until the process ends.
var Own = sync.OnceValues(func() (own *NS, err error) {
	done := make(chan struct{})
	go func() { // the caller may be in NS.Do
		defer close(done)
		own, err = Open("/proc/thread-self/ns/net")
	}()
	<-done
	return own, err
})

// Close lets go of the namespace. The process's own stays open.
func (n *NS) Close() error {
	if own, err := Own(); err == nil && n == own {
		return nil
	}
	return unix.Close(n.fd)
}

// Path is the path by which it was opened.
func (n *NS) Path() string { return n.path }

// ID is the namespace's ID.
func (n *NS) ID() ID { return n.id }

// FD is the open descriptor, for a request that names the namespace by it.
func (n *NS) FD() int { return n.fd }

// Do runs fn in a goroutine of its own on a thread that is in the namespace; what fn starts
// in other goroutines is not. It enters nothing for the process's own namespace, and else
// needs CAP_SYS_ADMIN. A thread that cannot be brought back stays locked to a goroutine that
// ends, and ends with it.
func (n *NS) Do(fn func() error) error {
	own, err := Own()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		if n.id == own.id {
			done <- fn()
		} else {
			done <- n.visit(fn, own)
		}
	}()
	return <-done
}

// visit runs fn in the namespace on the thread of its goroutine, which comes back to own.
func (n *NS) visit(fn func() error, own *NS) error {
	runtime.LockOSThread()
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering network namespace %s: %w", n.path, err)
	}
	err := fn()
	if back := unix.Setns(own.fd, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leaving network namespace %s: %w", n.path, back))
	}
	runtime.UnlockOSThread()
	return err
}

// Socket opens a socket in the namespace, where it stays.
func (n *NS) Socket(domain, kind, protocol int) (fd int, err error) {
	fd = -1
	err = n.Do(func() (err error) {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		return os.NewSyscallError("socket", err)
	})
	if err != nil && fd >= 0 { // it is there, but the way back was not
		_ = unix.Close(fd)
	}
	return fd, err
}

// Listen listens in the namespace, at a literal address.
func (n *NS) Listen(ctx context.Context, config net.ListenConfig, network, address string) (l net.Listener, err error) {
	err = n.Do(func() (err error) {
		l, err = config.Listen(ctx, network, address)
		return err
	})
	if err != nil && l != nil {
		_ = l.Close()
	}
	return l, err
}

// OfSocket returns the ID of the namespace that a socket is in. It needs CAP_NET_ADMIN.
func OfSocket(fd int) (ID, error) {
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return ID{}, os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return ID{}, os.NewSyscallError("fstat", err)
	}
	return ID{st.Dev, st.Ino}, nil
}
