package bindingdb

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

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

// Commits do not wait for the disk, so when power fails, any of the pages that they wrote may
// have reached it, and parts of some. The file opens all the same: what is lost are bindings
// of an earlier boot.
func TestLossOfPower(t *testing.T) {
	t.Parallel()
	for round := range testnet.Soak(40, 1000) {
		path := newPath(t)
		fillPool(t, path, 50)
		loseWrites(t, path, func(s *Store) (err error) {
			want := Want{Pool: mustPool(t, "169.254.172.0/22")}
			for i := range 1 + rand.IntN(60) {
				_, acquireErr := s.Acquire(ecs.Binding{Attachment: attachment(1000 + i)}, want)
				err = errors.Join(err, acquireErr, s.Release(attachment(i), ""))
			}
			return err
		})
		if err := serveNextBoot(t, path); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// loseWrites leaves the file as a loss of power may leave it that comes after do, with some
// of the pages that do has written. The lock file is as before.
func loseWrites(t *testing.T, path string, do func(*Store) error) {
	t.Helper()
	read := func(path string) []byte {
		contents, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return contents
	}
	lock, before := read(lockPath(path)), read(path)
	if err := with(t, path, do); err != nil {
		t.Fatal(err)
	}
	after, size := read(path), os.Getpagesize()
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
}

// serveNextBoot reads and writes the file after the boot in which it was written.
func serveNextBoot(t *testing.T, path string) error {
	t.Helper()
	const next = "22222222-2222-2222-2222-222222222222"
	r, err := NewReader(path, Options{BootID: next})
	if err != nil {
		return err
	}
	if s, err := r.Snapshot(); err != nil || len(s.All()) != 0 {
		return fmt.Errorf("a reader before the first writer: %v", err)
	}
	s, err := Open(t.Context(), path, Options{BootID: next})
	if err != nil {
		return err
	}
	b, err := s.Acquire(ecs.Binding{Attachment: attachment(7)}, Want{Pool: mustPool(t, "169.254.172.0/22")})
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	testnet.CheckPages(t, path)
	if got := mustBinding(t, r, b.Addrs[0].Addr()); got.BootID != next {
		return fmt.Errorf("boot %q", got.BootID)
	}
	return nil
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
		if got := readBootMark(lock); err != nil || got != (bootMark{thisBoot, inode(info)}) {
			t.Errorf("mark %q became %+v", text, got)
		}
		lock.Close()
	}
}
