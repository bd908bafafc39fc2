package bindingdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

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

// Who waits for a lock whose file is removed meanwhile has not got that which others take.
func TestALockThatIsRemoved(t *testing.T) {
	t.Parallel()
	path := lockPath(newPath(t))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	held, err := Lock(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan *os.File, 1)
	go func() {
		f, err := Lock(context.Background(), path, true)
		if err != nil {
			t.Error(err)
		}
		waited <- f
	}()
	waitFor(t, func() bool { return waiters(t, path) > 0 })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := Lock(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	held.Close()
	waitFor(t, func() bool { return waiters(t, path) > 0 })
	other.Close()
	f := <-waited
	defer f.Close()
	if !isAt(f, path) {
		t.Error("it has the lock of a file that is gone")
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
