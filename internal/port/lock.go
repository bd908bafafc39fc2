package port

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/backoff"
	"taskmeta/internal/ecs"
)

// lockRetry is the longest pause between two tries to lock a port.
const lockRetry = 20 * time.Millisecond

// Lock waits until nobody else makes, mends or removes the port of an attachment whose
// binding is in that file. ADD and DEL hold it for as long as they take, so the keeper does
// not mend what is about to be made or removed. It ends with the process. There is one file
// for all attachments, of which each has a byte (open file description locks, fcntl(2)).
func Lock(ctx context.Context, db string, a ecs.Attachment) (release func(), err error) {
	pause := backoff.Backoff{Max: lockRetry}
	for {
		release, ok, err := TryLock(db, a)
		if err != nil || ok {
			return release, err
		}
		select {
		case <-time.After(min(pause.Next(), lockRetry)):
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for others that change the port of %s: %w", a, context.Cause(ctx))
		}
	}
}

// TryLock is [Lock] that does not wait: it reports false if somebody else has it.
func TryLock(db string, a ecs.Attachment) (release func(), ok bool, err error) {
	dir := filepath.Dir(db)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, fmt.Errorf("making the directory of the bindings file: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "ports.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("locking the port of %s: %w", a, err)
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%s", a.Network, a.Container, a.IfName)
	at := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(h.Sum64() >> 1), Len: 1}
	switch err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &at); {
	case err == nil:
		return func() { _ = f.Close() }, true, nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return nil, false, f.Close()
	default:
		return nil, false, errors.Join(fmt.Errorf("locking the port of %s: %w", a, err), f.Close())
	}
}
