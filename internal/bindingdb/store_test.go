package bindingdb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

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
			checkPages(t, path)
		}
	})
	return path
}

// checkPages fails the test unless bbolt finds its file whole.
func checkPages(t testing.TB, path string) {
	t.Helper()
	db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatalf("opening %s for a check: %v", path, err)
	}
	defer db.Close()
	if err := db.View(func(tx *bbolt.Tx) error {
		var all []error
		for err := range tx.Check() {
			all = append(all, err)
		}
		return errors.Join(all...)
	}); err != nil {
		t.Errorf("%s: %v", path, err)
	}
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

func TestAcquireAndRelease(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	b := mustAcquire(t, path, attachment(1), want)
	if got := fmt.Sprint(b.Addrs); got != "[169.254.172.2/22]" {
		t.Errorf("the first attachment got %s", got)
	}
	if b.BootID != thisBoot {
		t.Errorf("boot ID %q", b.BootID)
	}
	_, err := acquire(t, path, attachment(1), want)
	if !errors.Is(err, ecs.ErrHeld) || !strings.Contains(err.Error(), "169.254.172.2") {
		t.Errorf("a second ADD: %v", err)
	}
	release(t, path, attachment(1))
	release(t, path, attachment(1))
	if b := mustAcquire(t, path, attachment(1), want); b.Addrs[0].Addr() != netip.MustParseAddr("169.254.172.3") {
		t.Errorf("an address that was just freed is given again at once: %v", b.Addrs)
	}
}

func TestTwoFamilies(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	wants := []Want{{Pool: mustPool(t, "169.254.172.0/22")}, {Pool: mustPool(t, "fd00:ec2::172:0/112")}}
	b := mustAcquire(t, path, attachment(1), wants...)
	if got := fmt.Sprint(b.Addrs); got != "[169.254.172.2/22 fd00:ec2::172:2/112]" {
		t.Errorf("got %s", got)
	}
	r := newReader(t, path)
	v4, v6 := mustBinding(t, r, b.Addrs[0].Addr()), mustBinding(t, r, b.Addrs[1].Addr())
	if v4 != v6 {
		t.Error("the two addresses of a binding lead to two bindings")
	}
	release(t, path, attachment(1))
	for _, p := range b.Addrs {
		if _, err := r.Binding(p.Addr()); !errors.Is(err, ecs.ErrNoBinding) {
			t.Errorf("%s after release: %v", p, err)
		}
	}
}

func TestAcquireByName(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	pool := mustPool(t, "10.1.0.0/24")
	want := Want{Pool: pool, Addr: netip.MustParsePrefix("10.1.0.9/24")}
	mustAcquire(t, path, attachment(1), want)
	_, err := acquire(t, path, attachment(2), want)
	if !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), "c1/eth0") {
		t.Errorf("an address that is taken: %v", err)
	}
	if b := mustAcquire(t, path, attachment(2), Want{Pool: pool}); b.Addrs[0].Addr() != netip.MustParseAddr("10.1.0.2") {
		t.Errorf("any other address: %v", b.Addrs)
	}
}

// A failure in the second family must not leave an address of the first.
func TestAcquireIsAllOrNothing(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	v4, v6 := mustPool(t, "10.1.0.0/24"), mustPool(t, "fd00::/126")
	mustAcquire(t, path, attachment(1), Want{Pool: v6})
	mustAcquire(t, path, attachment(2), Want{Pool: v6})
	if _, err := acquire(t, path, attachment(3), Want{Pool: v4}, Want{Pool: v6}); !errors.Is(err, ecs.ErrPoolFull) {
		t.Fatalf("a full pool: %v", err)
	}
	if b := mustAcquire(t, path, attachment(4), Want{Pool: v4}); b.Addrs[0].Addr() != netip.MustParseAddr("10.1.0.2") {
		t.Errorf("the first IPv4 address is lost: got %v", b.Addrs)
	}
}

func TestFullPool(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	err := with(t, path, func(s *Store) error {
		for i := range 1021 {
			if _, err := s.Acquire(ecs.Binding{Attachment: attachment(i)}, want); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = acquire(t, path, attachment(1021), want)
	if !errors.Is(err, ecs.ErrPoolFull) || !strings.Contains(err.Error(), "of 1021 addresses 1021 are held") {
		t.Errorf("the 1022nd: %v", err)
	}
	if err := with(t, path, func(s *Store) error { return s.Room(want) }); !errors.Is(err, ecs.ErrPoolFull) {
		t.Errorf("Room: %v", err)
	}
	for i := range 1021 {
		release(t, path, attachment(i))
	}
	given := make(map[netip.Prefix]bool)
	for i := range 1021 {
		given[mustAcquire(t, path, attachment(i), want).Addrs[0]] = true
	}
	if len(given) != 1021 {
		t.Errorf("after all were freed %d different addresses were given", len(given))
	}
}

// With the pointer just before it, a freed address would be the next: it is passed over.
func TestFreedAddressIsNotNext(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "10.0.0.0/29")} // .2 to .6
	for i := range 5 {
		mustAcquire(t, path, attachment(i), want)
	}
	release(t, path, attachment(3)) // .5
	release(t, path, attachment(0)) // .2, which stands first after .6
	for _, addr := range []string{"10.0.0.5", "10.0.0.2"} {
		if b := mustAcquire(t, path, ecs.Attachment{Container: addr}, want); b.Addrs[0].Addr() != netip.MustParseAddr(addr) {
			t.Errorf("got %v, want %s", b.Addrs, addr)
		}
	}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	valid := make(map[ecs.Attachment]bool)
	for i := range 10 {
		mustAcquire(t, path, attachment(i), want)
		if i%2 == 0 {
			valid[attachment(i)] = true
		}
	}
	elsewhere := ecs.Attachment{Network: "ecs-task2", Container: "c1", IfName: "eth0"}
	mustAcquire(t, path, elsewhere, want)
	start := bootclock.Now()
	late := attachment(100)
	mustAcquire(t, path, late, want)

	var freed []ecs.Binding
	if err := with(t, path, func(s *Store) (err error) {
		freed, err = s.Collect("ecs-task", valid, start)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(freed) != 5 {
		t.Errorf("freed %d bindings, want 5", len(freed))
	}
	for _, a := range []ecs.Attachment{attachment(0), attachment(8), elsewhere, late} {
		if err := with(t, path, func(s *Store) error { _, err := s.Lookup(a); return err }); err != nil {
			t.Errorf("in use, yet freed: %v", err)
		}
	}
}

func TestBindingsOfAnEarlierBootAreDropped(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	b := mustAcquire(t, path, attachment(1), want)
	const next = "22222222-2222-2222-2222-222222222222"

	r, err := NewReader(path, Options{BootID: next})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Binding(b.Addrs[0].Addr()); !errors.Is(err, ecs.ErrNoBinding) {
		t.Errorf("a reader of the next boot: %v", err)
	}
	s, err := Open(t.Context(), path, Options{BootID: next})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Lookup(attachment(1)); !errors.Is(err, ecs.ErrNoBinding) {
		t.Errorf("a writer of the next boot: %v", err)
	}
	if b, err := s.Acquire(ecs.Binding{Attachment: attachment(1)}, want); err != nil || b.BootID != next {
		t.Errorf("an ADD in the next boot: %v, %v", b, err)
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	if _, err := Open(t.Context(), path, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file was made: %v", err)
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "10.0.0.0/24")})
	held, err := lock(t.Context(), lockPath(path), unix.LOCK_EX, DefaultWait)
	if err != nil {
		t.Fatal(err)
	}
	const wait = 30 * time.Millisecond
	start := time.Now()
	_, err = Open(t.Context(), path, Options{Wait: wait})
	if !errors.Is(err, ecs.ErrBusy) || time.Since(start) < wait {
		t.Errorf("a locked file: %v after %v", err, time.Since(start))
	}
	if self := fmt.Sprintf("process %d)", os.Getpid()); !strings.Contains(err.Error(), self) {
		t.Errorf("%q does not name %q", err, self)
	}

	// Who waits is served once the lock is free, without a second try.
	opened := make(chan error)
	go func() {
		s, err := Open(context.Background(), path, Options{BootID: thisBoot})
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	waitFor(t, func() bool { return waiters(t, lockPath(path)) > 0 })
	held.Close()
	if err := <-opened; err != nil {
		t.Errorf("after the lock was given back: %v", err)
	}
}

// waiters counts those in the kernel's queue for a lock.
func waiters(t testing.TB, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(locks)) {
		if strings.Contains(line, "->") && strings.Contains(line, fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)) {
			n++
		}
	}
	return n
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

// A file that can't be what was written is refused by writer and reader, and left alone.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	size := int64(os.Getpagesize())
	truncate := func(n int64) func(testing.TB, string) {
		return func(t testing.TB, path string) {
			if err := os.Truncate(path, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	overwrite := func(offset int64, with []byte) func(testing.TB, string) {
		return func(t testing.TB, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(with, offset); err != nil {
				t.Fatal(err)
			}
		}
	}
	random := make([]byte, size)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	tests := map[string]func(testing.TB, string){
		"empty":                           truncate(0),
		"cut within the first page":       truncate(50),
		"cut after the first page":        truncate(size),
		"cut after the metas":             truncate(2 * size),
		"cut in the middle":               truncate(5*size + 100),
		"zeroes for the metas":            overwrite(0, make([]byte, 2*size)),
		"zeroes for the first meta":       overwrite(0, make([]byte, size)),
		"zeroes for the second meta":      overwrite(size, make([]byte, size)),
		"zeroes for all that follows":     func(t testing.TB, path string) { overwrite(2*size, make([]byte, fileSize(t, path)-2*size))(t, path) },
		"zeroes for all":                  func(t testing.TB, path string) { overwrite(0, make([]byte, fileSize(t, path)))(t, path) },
		"random bytes for the first meta": overwrite(0, random),
		"random bytes for all that follows": func(t testing.TB, path string) {
			for offset := 2 * size; offset < fileSize(t, path); offset += size {
				overwrite(offset, random)(t, path)
			}
		},
		"a text file": overwrite(0, []byte(strings.Repeat("not a database\n", 1000))),
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "bindings.db")
			want := Want{Pool: mustPool(t, "169.254.172.0/22")}
			for i := range 40 {
				mustAcquire(t, path, attachment(i), want)
			}
			damage(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			operations := map[string]func() error{
				"Acquire": func() error { _, err := acquire(t, path, attachment(100), want); return err },
				"Release": func() error {
					return with(t, path, func(s *Store) error { return s.Release(attachment(1), "") })
				},
				"Collect": func() error {
					return with(t, path, func(s *Store) error { _, err := s.Collect("ecs-task", nil, bootclock.Now()); return err })
				},
				"Reader": func() error { _, err := newReader(t, path).Snapshot(); return err },
			}
			for operation, do := range operations {
				if err := do(); !errors.Is(err, ecs.ErrDamaged) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: %v", operation, err)
				}
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}

// One page of random bytes, whichever, with its header and without: no operation dies or
// changes the file if it fails, and no address is given twice.
func TestEveryPageDamaged(t *testing.T) {
	t.Parallel()
	size := os.Getpagesize()
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	original := filepath.Join(t.TempDir(), "bindings.db")
	held := make(map[netip.Prefix]bool)
	for i := range 40 {
		held[mustAcquire(t, original, attachment(i), want).Addrs[0]] = true
	}
	contents, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]int{"whole pages": 0, "all but the page headers": pageHeader} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failed := 0
			for page := range len(contents) / size {
				broken := slices.Clone(contents)
				for i := from; i < size; i++ {
					broken[page*size+i] = byte(rand.Uint32())
				}
				path := filepath.Join(t.TempDir(), "bindings.db")
				if err := os.WriteFile(path, broken, 0o600); err != nil {
					t.Fatal(err)
				}
				b, err := acquire(t, path, attachment(100), want)
				if err == nil {
					if held[b.Addrs[0]] {
						t.Errorf("page %d damaged: %v was given again", page, b.Addrs)
					}
					continue
				}
				failed++
				if after, readErr := os.ReadFile(path); readErr != nil || string(after) != string(broken) {
					t.Errorf("page %d damaged: the file was changed by an ADD that failed with %v", page, err)
				}
			}
			if failed < 4 {
				t.Errorf("only %d damaged pages were noticed", failed)
			}
		})
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

func TestNewerSchema(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "10.0.0.0/24")}
	mustAcquire(t, path, attachment(1), want)
	edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, []byte("2")) })
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := acquire(t, path, attachment(2), want); !errors.Is(err, ecs.ErrNewerSchema) {
		t.Errorf("ADD: %v", err)
	}
	if _, err := newReader(t, path).Snapshot(); !errors.Is(err, ecs.ErrNewerSchema) {
		t.Errorf("a reader: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed (%v)", err)
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

// writeAWS writes a file as AWS's plugin leaves it: text keys, and values behind libkv's
// counter.
func writeAWS(t testing.TB, path string, entries ...string) {
	t.Helper()
	edit(t, path, func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(bucketAWS)
		for i, entry := range entries {
			key, id, _ := strings.Cut(entry, " ")
			value := binary.LittleEndian.AppendUint64(nil, uint64(i+1))
			err = errors.Join(err, bucket.Put([]byte(key), append(value, id...)))
		}
		return err
	})
}

func TestTakeOverOfAnAWSFile(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	writeAWS(t, path, "169.254.172.1 GateWay", "169.254.172.2 pause1", "169.254.172.3 pause2",
		"169.254.172.5 pause1", "lastKnownIP 169.254.172.3")

	r := newReader(t, path)
	if b := mustBinding(t, r, netip.MustParseAddr("169.254.172.3")); b.Owner() != "pause2" {
		t.Errorf("a reader before the take-over: %+v", b)
	}
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	for i, addr := range []string{"169.254.172.4", "169.254.172.6"} {
		if b := mustAcquire(t, path, attachment(i), want); b.Addrs[0].Addr() != netip.MustParseAddr(addr) {
			t.Errorf("ADD got %v, want %s", b.Addrs, addr)
		}
	}
	named := Want{Pool: want.Pool, Addr: netip.MustParsePrefix("169.254.172.2/22")}
	if _, err := acquire(t, path, attachment(9), named); !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), "pause1") {
		t.Errorf("an address of the AWS plugin's: %v", err)
	}
	if err := with(t, path, func(s *Store) error { return s.Release(attachment(9), "pause1") }); err != nil {
		t.Fatal(err)
	}
	for addr, owner := range map[string]string{"169.254.172.2": "", "169.254.172.5": "", "169.254.172.3": "pause2"} {
		b, err := r.Binding(netip.MustParseAddr(addr))
		if owner == "" && !errors.Is(err, ecs.ErrNoBinding) || owner != "" && (err != nil || b.Owner() != owner) {
			t.Errorf("%s after DEL of pause1: %+v, %v", addr, b, err)
		}
	}
	mustAcquire(t, path, attachment(9), named)
}

// That plugin takes an address without an ID, which is freed by itself. One with an ID is
// its owner's, and those of ours are their attachments'.
func TestReleaseByAddressOfWhatAWSRecorded(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	writeAWS(t, path, "169.254.172.2 ", "169.254.172.3 ", "169.254.172.4 pause")
	b := mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "169.254.172.0/22")})
	for _, named := range []string{"169.254.172.2", "169.254.172.4", "169.254.172.9", b.Addrs[0].Addr().String()} {
		if err := with(t, path, func(s *Store) error {
			return s.Release(attachment(9), "c9", netip.MustParseAddr(named))
		}); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := newReader(t, path).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	left := make(map[string]bool)
	for _, b := range snapshot.All() {
		for _, p := range b.Addrs {
			left[p.Addr().String()] = true
		}
	}
	if want := map[string]bool{"169.254.172.3": true, "169.254.172.4": true, b.Addrs[0].Addr().String(): true}; !maps.Equal(left, want) {
		t.Errorf("left: %v, want %v", left, want)
	}
}

// A gateway is on a bridge: no network gives it away, and none takes for its gateway what
// an attachment has.
func TestGatewaysAreNobodys(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	subnet := netip.MustParsePrefix("10.0.0.0/29") // .1 to .6
	pool := func(gateway string) Want {
		p, err := ecs.NewPool(subnet, netip.MustParseAddr(gateway))
		if err != nil {
			t.Fatal(err)
		}
		return Want{Pool: p}
	}
	mustAcquire(t, path, attachment(1), pool("10.0.0.1"))
	named := pool("10.0.0.6")
	named.Addr = netip.MustParsePrefix("10.0.0.1/29")
	if _, err := acquire(t, path, attachment(2), named); !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), `10.0.0.1 is a gateway, first of network "ecs-task"`) {
		t.Errorf("another network's gateway by name: %v", err)
	}
	if _, err := acquire(t, path, attachment(2), pool("10.0.0.2")); !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), "the gateway 10.0.0.2 is held by c1/eth0") {
		t.Errorf("an attachment's address for a gateway: %v", err)
	}
	for i, addr := range []string{"10.0.0.3", "10.0.0.4", "10.0.0.5"} {
		if b := mustAcquire(t, path, attachment(10+i), pool("10.0.0.6")); b.Addrs[0].Addr() != netip.MustParseAddr(addr) {
			t.Errorf("got %v, want %s", b.Addrs, addr)
		}
	}
	_, err := acquire(t, path, attachment(2), pool("10.0.0.6"))
	if !errors.Is(err, ecs.ErrPoolFull) || !strings.Contains(err.Error(), "of 4 addresses 4 are held") {
		t.Errorf("a full pool: %v", err)
	}
}

func TestGatewaysOfAnAWSFile(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	writeAWS(t, path, "10.0.0.2 GateWay", "10.0.0.3 pause")
	if b := mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "10.0.0.0/29")}); b.Addrs[0].Addr() != netip.MustParseAddr("10.0.0.4") {
		t.Errorf("got %v, want 10.0.0.4", b.Addrs)
	}
}

// Commits do not wait for the disk, so that any of the pages that they wrote may have
// reached it when power fails, and parts of some. The file opens all the same: what is lost
// are bindings of an earlier boot.
func TestLossOfPower(t *testing.T) {
	t.Parallel()
	const next = "22222222-2222-2222-2222-222222222222"
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	size := os.Getpagesize()
	for round := range testnet.Soak(40, 1000) {
		path := newPath(t)
		fillPool(t, path, 50)
		lock, err := os.ReadFile(lockPath(path))
		if err != nil {
			t.Fatal(err)
		}
		read := func() []byte {
			contents, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return contents
		}
		before := read()
		if err := with(t, path, func(s *Store) (err error) {
			for i := range 1 + rand.IntN(60) {
				_, acquireErr := s.Acquire(ecs.Binding{Attachment: attachment(1000 + i)}, want)
				err = errors.Join(err, acquireErr, s.Release(attachment(i), ""))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		after := read()
		disk := make([]byte, len(after)) // of a file that has grown the rest is zeroes
		copy(disk, before)
		for from := 0; from < len(after); from += size {
			switch rand.IntN(3) {
			case 0:
				copy(disk[from:from+size], after[from:])
			case 1:
				copy(disk[from:from+rand.IntN(size)], after[from:])
			}
		}
		if rand.IntN(4) == 0 { // the new length may be lost as well
			disk = disk[:len(before)]
		}
		if err := errors.Join(os.WriteFile(path, disk, 0o600), os.WriteFile(lockPath(path), lock, 0o600)); err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(path, Options{BootID: next})
		if err != nil {
			t.Fatal(err)
		}
		if s, err := r.Snapshot(); err != nil || len(s.All()) != 0 {
			t.Fatalf("round %d: a reader before the first writer: %v", round, err)
		}
		var b ecs.Binding
		s, err := Open(t.Context(), path, Options{BootID: next})
		if err == nil {
			b, err = s.Acquire(ecs.Binding{Attachment: attachment(7)}, want)
			err = errors.Join(err, s.Close())
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		checkPages(t, path)
		if got := mustBinding(t, r, b.Addrs[0].Addr()); got.BootID != next {
			t.Fatalf("round %d: boot %q", round, got.BootID)
		}
	}
}

// A damaged file that is not the one which the mark tells of may be anybody's, and of now.
func TestDamageOfAnUnknownFile(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	fillPool(t, path, 3)
	const next = "22222222-2222-2222-2222-222222222222"
	contents, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(contents[os.Getpagesize()*2:])
	other := path + ".other"
	if err := errors.Join(os.WriteFile(other, contents, 0o600), os.Rename(other, path)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, Options{BootID: next}); !errors.Is(err, ecs.ErrDamaged) {
		t.Errorf("a writer of the next boot: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(contents) {
		t.Errorf("the file was changed (%v)", err)
	}
	os.Remove(path) // or it would be checked
}

// Without its mark, as after somebody has removed the lock, a file is what it says itself.
func TestLostMark(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	fillPool(t, path, 3)
	for _, text := range []string{"", "nonsense\n", thisBoot, "\n", thisBoot + " x\n"} {
		if err := os.WriteFile(lockPath(path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := newReader(t, path).Snapshot(); err != nil || len(s.All()) != 3 {
			t.Errorf("mark %q: a reader: %v", text, err)
		}
		if err := with(t, path, func(s *Store) error { _, err := s.Lookup(attachment(1)); return err }); err != nil {
			t.Errorf("mark %q: %v", text, err)
		}
		lock, err := os.Open(lockPath(path))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if got := readMark(lock); err != nil || got != (mark{thisBoot, inode(info)}) {
			t.Errorf("mark %q became %+v", text, got)
		}
		lock.Close()
	}
}

func TestForeignDatabase(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	edit(t, path, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("users")); return err })
	if err := with(t, path, func(*Store) error { return nil }); !errors.Is(err, ecs.ErrDamaged) || !strings.Contains(err.Error(), `"users"`) {
		t.Errorf("someone else's database: %v", err)
	}
}

// The store against a map: no address has two holders, none is lost, whatever is done.
func TestStoreAgainstAModel(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	r := newReader(t, path)
	rapid.Check(t, func(t *rapid.T) {
		os.Remove(path)
		s, err := Open(context.Background(), path, Options{Create: true, BootID: thisBoot})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { s.Close() }()
		pool := mustPool(t, "10.0.0.0/28") // 13 addresses
		model := make(map[ecs.Attachment]netip.Addr)
		anyAttachment := rapid.Custom(func(t *rapid.T) ecs.Attachment {
			a := attachment(rapid.IntRange(0, 19).Draw(t, "container"))
			a.Network = rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "network")
			return a
		})
		holder := func(addr netip.Addr) (ecs.Attachment, bool) {
			for a, other := range model {
				if other == addr {
					return a, true
				}
			}
			return ecs.Attachment{}, false
		}
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				a := anyAttachment.Draw(t, "attachment")
				b, err := s.Acquire(ecs.Binding{Attachment: a}, Want{Pool: pool})
				_, held := model[a]
				switch {
				case held:
					if !errors.Is(err, ecs.ErrHeld) {
						t.Fatalf("a second ADD: %v", err)
					}
				case len(model) == 13:
					if !errors.Is(err, ecs.ErrPoolFull) {
						t.Fatalf("a full pool: %v", err)
					}
				case err != nil:
					t.Fatal(err)
				default:
					if other, taken := holder(b.Addrs[0].Addr()); taken {
						t.Fatalf("%s was given to %s and %s", b.Addrs[0], other, a)
					}
					model[a] = b.Addrs[0].Addr()
				}
			},
			"acquire by name": func(t *rapid.T) {
				a := anyAttachment.Draw(t, "attachment")
				addr := pool.Subnet.Addr()
				for range rapid.IntRange(2, 14).Draw(t, "host") {
					addr = addr.Next()
				}
				_, err := s.Acquire(ecs.Binding{Attachment: a}, Want{pool, netip.PrefixFrom(addr, 28)})
				_, held := model[a]
				_, taken := holder(addr)
				switch {
				case held:
					if !errors.Is(err, ecs.ErrHeld) {
						t.Fatalf("a second ADD: %v", err)
					}
				case taken:
					if !errors.Is(err, ecs.ErrAddrTaken) {
						t.Fatalf("a taken address: %v", err)
					}
				case err != nil:
					t.Fatal(err)
				default:
					model[a] = addr
				}
			},
			"release": func(t *rapid.T) {
				a := anyAttachment.Draw(t, "attachment")
				if err := s.Release(a, a.Container); err != nil {
					t.Fatal(err)
				}
				delete(model, a)
			},
			"collect": func(t *rapid.T) {
				valid := make(map[ecs.Attachment]bool)
				for a := range model {
					valid[a] = rapid.Bool().Draw(t, a.String())
				}
				if _, err := s.Collect("n1", valid, bootclock.Now()); err != nil {
					t.Fatal(err)
				}
				for a := range model {
					if a.Network == "n1" && !valid[a] {
						delete(model, a)
					}
				}
			},
			"reopen": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s, err = Open(context.Background(), path, Options{BootID: thisBoot}); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for a, addr := range model {
					if b, err := s.Lookup(a); err != nil || b.Addrs[0].Addr() != addr {
						t.Fatalf("%s should have %s: %v, %v", a, addr, b.Addrs, err)
					}
				}
			},
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		snapshot, err := r.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if all := snapshot.All(); len(all) != len(model) {
			t.Fatalf("the file has %d bindings, the model %d", len(all), len(model))
		}
	})
}
