package netns_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

func open(t testing.TB, host *testnet.Namespace) *netns.NS {
	t.Helper()
	ns, err := netns.Open(host.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// here is the ID of the calling thread's namespace.
func here(t testing.TB) netns.ID {
	t.Helper()
	id, err := netns.Identify("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return id
}

// Whatever namespace the caller is in, Do acts in the named one, and the caller stays.
func TestDoActsInTheNamedNamespace(t *testing.T) {
	t.Parallel()
	caller, named := testnet.T(t), testnet.T(t)
	ns, home := open(t, named), here(t)
	if id, err := netns.Identify(named.Path()); err != nil || id != ns.ID() {
		t.Fatalf("%v, %v at its path; want %v", id, err, ns.ID())
	}
	own, err := netns.Own()
	if err != nil || own.ID() != home {
		t.Errorf("the process's own is %v, %v; want %v", own.ID(), err, home)
	}
	failed := errors.New("failed")
	for range 3 {
		err := caller.Do(func() error {
			before := here(t)
			err := ns.Do(func() error {
				if now := here(t); now != ns.ID() {
					t.Errorf("acts in %v; want %v", now, ns.ID())
				}
				return ns.Do(func() error {
					return own.Do(func() error {
						if now := here(t); now != home {
							t.Errorf("acts in %v; want the process's own, %v", now, home)
						}
						return failed
					})
				})
			})
			if now := here(t); now != before || now == home || now == ns.ID() {
				t.Errorf("the caller was in %v and is in %v", before, now)
			}
			return err
		})
		if !errors.Is(err, failed) {
			t.Errorf("%v; want the function's error", err)
		}
	}
}

func TestDoLeavesNoThreadElsewhere(t *testing.T) {
	t.Parallel()
	ns, home := open(t, testnet.T(t)), here(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if err := ns.Do(func() error { return nil }); err != nil {
					t.Error(err)
				}
				if now := here(t); now != home {
					t.Errorf("the thread is in %v; want %v", now, home)
				}
			}
		})
	}
	all.Wait()
}

func TestListenInTheNamedNamespace(t *testing.T) {
	t.Parallel()
	caller, named := testnet.T(t), testnet.T(t)
	var l net.Listener
	err := caller.Do(func() (err error) {
		l, err = open(t, named).Listen(t.Context(), net.ListenConfig{}, "tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := caller.DialContext(t.Context(), "tcp", l.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("from the caller's namespace: %v, %v; want it refused", c, err)
	}
	c, err := named.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestWhatIsNoNamespace(t *testing.T) {
	testnet.Need(t)
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := netns.Open(missing); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v; want the path, and that it does not exist", err)
	}
	ns, err := netns.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	entered := false
	err = ns.Do(func() error { entered = true; return nil })
	if !errors.Is(err, unix.EINVAL) || entered {
		t.Errorf("a directory: entered is %t, %v", entered, err)
	}
}

func TestListHasEachNamespaceOnce(t *testing.T) {
	t.Parallel()
	run, bound := testnet.T(t), testnet.T(t)
	var first string
	for i := range 2 {
		cmd := exec.Command("sleep", "60")
		if err := run.Start(cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		if i == 0 {
			first = netns.Path(cmd.Process.Pid)
		}
		if err := bound.Start(exec.Command("sleep", "60")); err != nil { // a mount goes before processes
			t.Fatal(err)
		}
	}
	mount := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(mount, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(bound.Path(), mount, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	all, err := netns.List()
	if err != nil {
		t.Fatal(err)
	}
	for want, id := range map[string]netns.ID{first: open(t, run).ID(), mount: open(t, bound).ID()} {
		of := slices.Collect(func(yield func(string) bool) {
			for _, ref := range all {
				if ref.ID == id && !yield(ref.Path) {
					return
				}
			}
		})
		if !slices.Equal(of, []string{want}) {
			t.Errorf("listed by %q; want %q", of, want)
		}
	}
	if !slices.ContainsFunc(all, func(ref netns.Ref) bool { return ref.ID == here(t) }) {
		t.Error("this process's own is not listed")
	}
}

// BenchmarkDo measures what it costs to open a socket elsewhere, and where the process is.
func BenchmarkDo(b *testing.B) {
	own, err := netns.Own()
	if err != nil {
		b.Fatal(err)
	}
	for name, ns := range map[string]*netns.NS{"elsewhere": open(b, testnet.T(b)), "in the process's own": own} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := ns.Do(func() error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
