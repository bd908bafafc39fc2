package bindingdb

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

// Beside writers at full speed, every binding is there once Acquire has returned and gone
// once Release has, for readers that share one Reader.
func TestReaderIsNeverLate(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	r := newReader(t, path)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	rounds := 100
	if os.Getenv("TASKMETA_SOAK") != "" {
		rounds = 5000
	}
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for range rounds {
				a := attachment(worker)
				b, err := acquire(t, path, a, want)
				if err != nil {
					t.Error(err)
					return
				}
				addr := b.Addrs[0].Addr()
				if got, err := r.Binding(addr); err != nil || got.Attachment != a {
					t.Errorf("%s after ADD: %v, %v", addr, got, err)
				}
				if err := with(t, path, func(s *Store) error { return s.Release(a, "") }); err != nil {
					t.Error(err)
					return
				}
				if got, err := r.Binding(addr); err == nil && got.Attachment == a || err != nil && !errors.Is(err, ecs.ErrNoBinding) {
					t.Errorf("%s after DEL: %v, %v", addr, got, err)
				}
			}
		})
	}
	group.Wait()
}

func TestUnchangedBindingsKeepTheirPointers(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "10.0.0.0/24")}
	first := mustAcquire(t, path, attachment(1), want).Addrs[0].Addr()
	r := newReader(t, path)
	before := mustBinding(t, r, first)
	second := mustAcquire(t, path, attachment(2), want).Addrs[0].Addr()
	mustBinding(t, r, second)
	if mustBinding(t, r, first) != before {
		t.Error("another ADD changed the pointer of a binding")
	}
	if got := r.Loads(); got != 2 {
		t.Errorf("%d loads, want 2", got)
	}
	release(t, path, attachment(1))
	b := mustAcquire(t, path, attachment(1), Want{Pool: want.Pool, Addr: netip.PrefixFrom(first, 24)})
	if after := mustBinding(t, r, b.Addrs[0].Addr()); after == before {
		t.Error("a new binding has the pointer of the old one")
	}
}

func TestReaderFollowsTheName(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	r := newReader(t, path)
	addr := netip.MustParseAddr("10.0.0.2")
	none := func(when string) {
		t.Helper()
		if _, err := r.Binding(addr); !errors.Is(err, ecs.ErrNoBinding) {
			t.Errorf("%s: %v", when, err)
		}
	}
	none("before there is a file")
	want := Want{Pool: mustPool(t, "10.0.0.0/24")}
	mustAcquire(t, path, attachment(1), want)
	mustBinding(t, r, addr)

	aside := filepath.Join(t.TempDir(), "aside.db")
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	none("with the file moved away")
	mustAcquire(t, path, attachment(2), want)
	if b := mustBinding(t, r, addr); b.Container != "c2" {
		t.Errorf("with another file in its place: %+v", b)
	}
	if err := os.Rename(aside, path); err != nil {
		t.Fatal(err)
	}
	if b := mustBinding(t, r, addr); b.Container != "c1" {
		t.Errorf("with the first file back: %+v", b)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	none("with the file deleted")
}

// A writer that hangs costs callers the wait and no more, and one goroutine in all.
func TestReaderBesideAHungWriter(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "10.0.0.0/24")}
	addr := mustAcquire(t, path, attachment(1), want).Addrs[0].Addr()
	r, err := NewReader(path, Options{BootID: thisBoot, Wait: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	held, err := lock(t.Context(), lockPath(path), unix.LOCK_EX, DefaultWait)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := r.Binding(addr); !errors.Is(err, ecs.ErrBusy) {
				t.Errorf("beside a hung writer: %v", err)
			}
		})
	}
	group.Wait()
	if n := waiters(t, lockPath(path)); n != 1 {
		t.Errorf("%d wait for the lock, want 1", n)
	}
	held.Close()
	waitFor(t, func() bool { _, err := r.Binding(addr); return err == nil })

	// An unchanged file is served from memory, whoever holds the lock.
	if held, err = lock(t.Context(), lockPath(path), unix.LOCK_EX, DefaultWait); err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	mustBinding(t, r, addr)
}

func TestReaderSeesDamageThatComesLater(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bindings.db")
	want := Want{Pool: mustPool(t, "10.0.0.0/24")}
	addr := mustAcquire(t, path, attachment(1), want).Addrs[0].Addr()
	r := newReader(t, path)
	mustBinding(t, r, addr)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Binding(addr); !errors.Is(err, ecs.ErrDamaged) {
		t.Errorf("an emptied file: %v", err)
	}
}

// A reader that is checking while the file is cut off under it does not die of that.
func TestMetasThatAreGone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bindings.db")
	addr := mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "10.0.0.0/24")}).Addrs[0].Addr()
	r := newReader(t, path)
	mustBinding(t, r, addr)
	s := r.current.Load()
	if !s.state.current(s.file) {
		t.Error("an unchanged file is taken for a changed one")
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if s.state.current(s.file) {
		t.Error("pages that are gone are taken for unchanged ones")
	}
}

func BenchmarkUnchangedFile(b *testing.B) {
	path := newPath(b)
	fillPool(b, path, 1021)
	r := newReader(b, path)
	addr := netip.MustParseAddr("169.254.173.7")
	mustBinding(b, r, addr)
	b.ReportAllocs()
	for b.Loop() {
		r.Binding(addr)
	}
}

// One binding of 1021 has changed.
func BenchmarkReload(b *testing.B) {
	path := newPath(b)
	fillPool(b, path, 1020)
	r := newReader(b, path)
	want := Want{Pool: mustPool(b, "169.254.172.0/22")}
	addr := netip.MustParseAddr("169.254.173.7")
	mustBinding(b, r, addr)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		release(b, path, attachment(2000))
		mustAcquire(b, path, attachment(2000), want)
		b.StartTimer()
		mustBinding(b, r, addr)
	}
}

func BenchmarkFirstLoad(b *testing.B) {
	path := newPath(b)
	fillPool(b, path, 1021)
	for b.Loop() {
		if _, err := newReader(b, path).Snapshot(); err != nil {
			b.Fatal(err)
		}
	}
}
