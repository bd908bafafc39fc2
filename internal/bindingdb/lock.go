package bindingdb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

// Lock takes the lock of a file other than the bindings', which it creates if it is missing:
// exclusively, or shared with others. It waits in the kernel's queue until ctx ends:
// [ecs.ErrBusy] then. Closing the file releases the lock, as does the end of the process.
func Lock(ctx context.Context, path string, exclusive bool) (*os.File, error) {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	return lock(ctx, path, how, forever)
}

// forever is a wait that ends only with the context.
const forever time.Duration = math.MaxInt64

// lock takes the advisory lock of the file at path, unix.LOCK_EX or unix.LOCK_SH. It waits
// in the kernel's queue until ctx ends or wait is over: [ecs.ErrBusy] then. Closing the file
// releases the lock, as does the end of the process. Only the owner can open the file,
// because whoever can open it can hold the lock.
//
// bbolt locks the bindings file as well, but polls every 50 ms.
func lock(ctx context.Context, path string, how int, wait time.Duration) (*os.File, error) {
	until := time.Now().Add(min(wait, math.MaxInt64/2))
	for {
		f, err := lockOnce(ctx, path, how, time.Until(until))
		if err != nil || isAt(f, path) {
			return f, err
		}
		f.Close() // it was removed while we waited, and others lock the new one
	}
}

// isAt reports whether the path names the open file.
func isAt(f *os.File, path string) bool {
	at, err := os.Stat(path)
	if err != nil {
		return false
	}
	is, err := f.Stat()
	return err == nil && os.SameFile(at, is)
}

func lockOnce(ctx context.Context, path string, how int, wait time.Duration) (*os.File, error) {
	f, err := openLock(path, how)
	if err != nil {
		return nil, err
	}
	switch err := flock(f, how|unix.LOCK_NB); {
	case err == nil:
		return f, nil
	case !errors.Is(err, unix.EWOULDBLOCK):
		f.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	granted := make(chan error)
	go func() {
		err := flock(f, how)
		select {
		case granted <- err:
		case <-ctx.Done():
			f.Close()
		}
	}()
	select {
	case err := <-granted:
		if err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	case <-ctx.Done():
		return nil, busy(path)
	}
}

// openLock opens the lock file, or makes it. A reader needs no more than to read it, so
// that a resolver may run as somebody whom its owner lets do that.
func openLock(path string, how int) (*os.File, error) {
	if how == unix.LOCK_SH {
		f, err := os.Open(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		}
	}
}

// busy is [ecs.ErrBusy] for a lock file, with the process that holds it if that is known.
func busy(path string) error {
	if who := holder(path); who != "" {
		return fmt.Errorf("%w: %s is held by %s", ecs.ErrBusy, path, who)
	}
	return fmt.Errorf("%w: %s", ecs.ErrBusy, path)
}

// holder finds who holds the lock of a file in /proc/locks, whose lines look like
//
//	1: FLOCK  ADVISORY  WRITE 1234 00:1a:5678 0 EOF
//
// with the process ID, and the device and inode of the file. It returns "" if it can't.
func holder(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer locks.Close()
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		// Those that wait have "->" in the second place, so all their fields stand one on.
		field := strings.Fields(lines.Text())
		if len(field) < 6 || field[1] != "FLOCK" || field[5] != file {
			continue
		}
		pid := field[4]
		if comm, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil {
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), pid)
		}
		return "process " + pid
	}
	return ""
}
