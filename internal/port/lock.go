package port

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/backoff"
	"taskmeta/internal/ecs"
)

// lockRetry is the longest pause between two tries to lock a port.
const lockRetry = 20 * time.Millisecond

// Lock waits until nobody else makes, mends or removes the ports of these attachments,
// whose bindings are in that file. ADD, DEL and GC hold it for as long as they take, so the
// keeper does not mend what is about to be made or removed. It ends with the process. There
// is one file for all attachments, of which each has a byte (open file description locks,
// fcntl(2)).
func Lock(ctx context.Context, db string, of ...ecs.Attachment) (release func(), err error) {
	f, err := openLock(db)
	if err != nil {
		return nil, err
	}
	// In one order, or two who want the same would wait for each other.
	slices.SortFunc(of, func(a, b ecs.Attachment) int { return cmp.Compare(a.String(), b.String()) })
	for _, a := range of {
		pause := backoff.Backoff{Max: lockRetry}
		for {
			ok, err := try(f, a)
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			if ok {
				break
			}
			select {
			case <-time.After(min(pause.Next(), lockRetry)):
			case <-ctx.Done():
				return nil, errors.Join(fmt.Errorf("waiting for others that change the port of %s: %w", a, context.Cause(ctx)), f.Close())
			}
		}
	}
	return func() { _ = f.Close() }, nil
}

// TryLock is [Lock] of one that does not wait: it reports false if somebody else has it.
func TryLock(db string, a ecs.Attachment) (release func(), ok bool, err error) {
	f, err := openLock(db)
	if err != nil {
		return nil, false, err
	}
	if ok, err = try(f, a); !ok || err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, true, nil
}

func openLock(db string) (*os.File, error) {
	dir := filepath.Dir(db)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the bindings file: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "ports.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the ports: %w", err)
	}
	return f, nil
}

func try(f *os.File, a ecs.Attachment) (bool, error) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%s", a.Network, a.Container, a.IfName)
	at := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(h.Sum64() >> 1), Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &at)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("locking the port of %s: %w", a, err)
	}
	return true, nil
}
