package witness_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/witness"
)

func TestSeenByMany(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	w := witness.New()
	client, server := accept(t, ns, "127.0.0.1:0", func(a string) (net.Conn, error) { return ns.DialContext(t.Context(), "tcp", a) })
	from, to := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
	b := &ecs.Binding{Netns: ns.Path()}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				if err := w.Seen(b, from, to); err != nil {
					t.Errorf("a connection that stands: %v", err)
				}
				if err := w.Seen(b, to, to); !errors.Is(err, witness.ErrNoSocket) {
					t.Errorf("a connection to itself: %v; want ErrNoSocket", err)
				}
			}
		})
	}
	all.Wait()
	server.Close()
	client.Close()
	if err := w.Seen(b, from, to); !errors.Is(err, witness.ErrNoSocket) {
		t.Errorf("a connection that is over: %v; want ErrNoSocket", err)
	}
	other := &ecs.Binding{Netns: filepath.Join(t.TempDir(), "gone")}
	if err := w.Seen(other, from, to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a namespace that is gone: %v; want ErrNotExist", err)
	}
}

// Two bindings of one path are two namespaces: the path has been given to another since.
func TestKeptByBinding(t *testing.T) {
	t.Parallel()
	first, second := testnet.T(t), testnet.T(t)
	w := witness.New()
	client, _ := accept(t, second, "127.0.0.1:0", func(a string) (net.Conn, error) { return second.DialContext(t.Context(), "tcp", a) })
	from, to := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
	path := filepath.Join(t.TempDir(), "net")
	if err := os.Symlink(first.Path(), path); err != nil {
		t.Fatal(err)
	}
	if err := w.Seen(&ecs.Binding{Netns: path}, from, to); !errors.Is(err, witness.ErrNoSocket) {
		t.Errorf("the first binding: %v; want ErrNoSocket", err)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(second.Path(), path)); err != nil {
		t.Fatal(err)
	}
	if err := w.Seen(&ecs.Binding{Netns: path}, from, to); err != nil {
		t.Errorf("the second binding: %v", err)
	}
}

// A path that has come to another namespace, as /proc/PID does when the PID is used again,
// is not the task's.
func TestANamespaceInPlaceOfTheTasks(t *testing.T) {
	t.Parallel()
	first, second := testnet.T(t), testnet.T(t)
	id := func(ns *testnet.Namespace) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(ns.Path(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	w := witness.New()
	client, _ := accept(t, second, "127.0.0.1:0", func(a string) (net.Conn, error) { return second.DialContext(t.Context(), "tcp", a) })
	from, to := addrPort(client.LocalAddr()), addrPort(client.RemoteAddr())
	if err := w.Seen(&ecs.Binding{Netns: second.Path(), NetnsID: id(first)}, from, to); !errors.Is(err, witness.ErrReplaced) {
		t.Errorf("a forger's namespace at the task's path: %v; want ErrReplaced", err)
	}
	if err := w.Seen(&ecs.Binding{Netns: second.Path(), NetnsID: id(second)}, from, to); err != nil {
		t.Errorf("the task's own: %v", err)
	}
}

// A namespace whose task has ended is soon let go of: with it goes its end of a veth pair,
// and with that the other end.
func TestKeptForAMoment(t *testing.T) {
	t.Parallel()
	host, task := testnet.T(t), testnet.T(t)
	in, err := host.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host-end"}, PeerName: "task-end"}
	if err := in.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	end, err := in.LinkByName("task-end")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := os.Open(task.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(in.LinkSetNsFd(end, int(fd.Fd())), fd.Close()); err != nil {
		t.Fatal(err)
	}
	w := witness.New()
	a := addrPort(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
	if err := w.Seen(&ecs.Binding{Netns: task.Path()}, a, a); !errors.Is(err, witness.ErrNoSocket) {
		t.Errorf("got %v; want ErrNoSocket", err)
	}
	if err := task.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err := in.LinkByName("host-end"); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the namespace is still there")
		}
		time.Sleep(20 * time.Millisecond)
	}
}
