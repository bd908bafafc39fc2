package bindingdb

import (
	"context"
	"errors"
	"fmt"
	"os"
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
