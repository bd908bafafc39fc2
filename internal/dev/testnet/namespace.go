// Package testnet is the kit of tests, benchmarks and the demo. It makes the hosts that they
// run on: network namespaces of their own, and Docker daemons inside them. Nothing of the
// machine's own network is touched, and the end of the process takes all of it away. On a
// host it calls a plugin ([Call]), runs a resolver ([Resolver]), asks over HTTP and waits.
// Functions return errors, for programs; those that take a testing.TB end the test.
package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace without a name: it lives as long as this process
// holds it open, or something runs in it.
type Namespace struct {
	handle netns.NsHandle
	others bool // opened, not made: what runs inside is not ours to end
}

// Open opens the network namespace at a path, such as a container's.
func Open(path string) (*Namespace, error) {
	handle, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("opening network namespace %s: %w", path, err)
	}
	return &Namespace{handle: handle, others: true}, nil
}

// resolverPorts are those of the resolver that the kernel would give clients too. One that
// asks for the page until it is there would otherwise get the page's own port some day.
const resolverPorts = "51679,51680"

// New makes an empty network namespace with its loopback interface up. It needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN.
func New() (*Namespace, error) {
	n := &Namespace{handle: netns.None()}
	err := onOwnThread(func() (err error) {
		if n.handle, err = netns.New(); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte(resolverPorts), 0o644); err != nil {
			return fmt.Errorf("reserving the resolver's ports: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding lo: %w", err)
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Path is a path of the namespace, as a runtime would put it in CNI_NETNS. It is good
// for as long as this process lives and Close has not been called.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.handle))
}

// Handle returns a netlink handle that acts in the namespace. The caller closes it.
func (n *Namespace) Handle() (*netlink.Handle, error) {
	return netlink.NewHandleAt(n.handle)
}

// Do runs fn on a thread that is in the namespace. What fn starts in other goroutines
// is not.
func (n *Namespace) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("entering a network namespace: %w", err)
		}
		return fn()
	})
}

// onOwnThread runs fn on a locked thread and gives the thread back in the namespace it
// came from. A thread that cannot be brought back is left locked, so that it ends with
// its goroutine.
func onOwnThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("opening the thread's network namespace: %w", err)
			return
		}
		defer home.Close()
		err = fn()
		if back := netns.Set(home); back != nil {
			done <- errors.Join(err, fmt.Errorf("leaving a network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Start starts cmd inside the namespace. It is sent SIGTERM should this process die.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	return n.Do(cmd.Start)
}

// Run starts cmd inside the namespace and waits for its end.
func (n *Namespace) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Output runs cmd inside the namespace and returns what it writes, without the last
// newline. Its error has that text too.
func (n *Namespace) Output(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Run(cmd)
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out.Bytes())
	}
	return strings.TrimSuffix(out.String(), "\n"), err
}

// DialContext connects from inside the namespace. The address is a literal one.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.Transport(net.Dialer{}).DialContext(ctx, network, address)
}

// Listen listens inside the namespace.
func (n *Namespace) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// Close lets go of the namespace. If it was made here, it first ends the processes that
// are still inside.
func (n *Namespace) Close() error {
	if !n.handle.IsOpen() {
		return nil
	}
	if n.others {
		return n.handle.Close()
	}
	var self unix.Stat_t
	if err := unix.Fstat(int(n.handle), &self); err != nil {
		return fmt.Errorf("looking at a network namespace: %w", err)
	}
	err := killAll(self)
	return errors.Join(err, n.handle.Close())
}

// killAll ends every process but this one whose network namespace is ns.
func killAll(ns unix.Stat_t) error {
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, link := range links {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(link))))
		var st unix.Stat_t
		if pid == os.Getpid() || unix.Stat(link, &st) != nil || st.Ino != ns.Ino || st.Dev != ns.Dev {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("ending process %d: %w", pid, err)
		}
	}
	return nil
}
