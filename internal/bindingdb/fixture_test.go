package bindingdb

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

const thisBoot = "11111111-1111-1111-1111-111111111111"

// newPath is a path for a bindings file, which is checked page by page at the end if
// there is one then.
func newPath(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state", "bindings.db")
	t.Cleanup(func() {
		if _, err := os.Stat(path); err == nil && !t.Failed() {
			testnet.CheckPages(t, path)
		}
	})
	return path
}

// with opens the store for one operation, as a plugin does.
func with(t testing.TB, path string, do func(*Store) error) error {
	t.Helper()
	s, err := Open(t.Context(), path, Options{Create: true, BootID: thisBoot})
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}

func attachment(i int) ecs.Attachment {
	return ecs.Attachment{Network: "ecs-task", Container: fmt.Sprintf("c%d", i), IfName: "eth0"}
}

func mustPool(t interface{ Fatal(...any) }, subnet string) ecs.Pool {
	pool, err := ecs.NewPool(netip.MustParsePrefix(subnet), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func acquire(t testing.TB, path string, a ecs.Attachment, wants ...Want) (b ecs.Binding, err error) {
	t.Helper()
	err = with(t, path, func(s *Store) (err error) {
		b, err = s.Acquire(ecs.Binding{Attachment: a, ID: a.Container, Created: time.Now(), Since: bootclock.Now()}, wants...)
		return err
	})
	return b, err
}

func mustAcquire(t testing.TB, path string, a ecs.Attachment, wants ...Want) ecs.Binding {
	t.Helper()
	b, err := acquire(t, path, a, wants...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func release(t testing.TB, path string, a ecs.Attachment) {
	t.Helper()
	if err := with(t, path, func(s *Store) error { return s.Release(a, a.Container) }); err != nil {
		t.Fatal(err)
	}
}

func fillPool(tb testing.TB, path string, n int) {
	tb.Helper()
	want := Want{Pool: mustPool(tb, "169.254.172.0/22")}
	if err := with(tb, path, func(s *Store) error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			v, err := open(tx, path)
			for i := range n {
				addr, pickErr := v.pick(want)
				b := ecs.Binding{
					Attachment: attachment(i), Addrs: []netip.Prefix{addr}, Netns: "/proc/12345/ns/net",
					ID:      "5d9c1a0d7b3e4f6a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a",
					TaskARN: "arn:aws:ecs:eu-west-1:123456789012:task/cluster/0123456789abcdef0123456789abcdef",
					BootID:  thisBoot, Created: time.Now(),
				}
				err = errors.Join(err, pickErr, v.grant(b))
			}
			return err
		})
	}); err != nil {
		tb.Fatal(err)
	}
}

// edit changes the file as a program does that knows nothing of ours.
func edit(t testing.TB, path string, fn func(*bbolt.Tx) error) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func newReader(t testing.TB, path string) *Reader {
	t.Helper()
	r, err := NewReader(path, Options{BootID: thisBoot})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustBinding(t testing.TB, r *Reader, addr netip.Addr) *ecs.Binding {
	t.Helper()
	b, err := r.Binding(addr)
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	return b
}

func waitFor(t testing.TB, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatal("the condition has not come true in 10 s")
		}
		time.Sleep(time.Millisecond)
	}
}
