package bindingdb

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/ecs"
)

// truncate cuts a file off at n bytes.
func truncate(n int64) func(testing.TB, string) {
	return func(t testing.TB, path string) {
		t.Helper()
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
	}
}

// overwrite writes into a file from an offset on.
func overwrite(offset int64, with []byte) func(testing.TB, string) {
	return func(t testing.TB, path string) {
		t.Helper()
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

// damages are ways to damage a file.
func damages() map[string]func(testing.TB, string) {
	size := int64(os.Getpagesize())
	random := make([]byte, size)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	return map[string]func(testing.TB, string){
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
}

// Writer and reader refuse a file that can't be what was written, and leave it alone.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	for name, damage := range damages() {
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
