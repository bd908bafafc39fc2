package bindingdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

// Restore puts a file with the given bindings in the place of the one at path, of which it
// uses nothing. That one, if there is one, is kept under the name returned. Plugins wait
// meanwhile, and readers meet either the one file or the other. An address that two
// bindings have is an error, and nothing is changed.
func Restore(ctx context.Context, path string, bindings []ecs.Binding, opts Options) (kept string, err error) {
	if opts, err = opts.withDefaults(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("making the directory of the bindings file: %w", err)
	}
	l, err := lock(ctx, lockPath(path), unix.LOCK_EX, opts.Wait)
	if err != nil {
		return "", fmt.Errorf("locking the bindings file: %w", err)
	}
	defer l.Close()

	temp := path + ".restored"
	if err := write(temp, bindings, opts.BootID); err != nil {
		os.Remove(temp)
		return "", fmt.Errorf("writing %s: %w", temp, err)
	}
	kept = path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000Z")
	switch err := os.Link(path, kept); {
	case errors.Is(err, fs.ErrNotExist):
		kept = ""
	case err != nil:
		os.Remove(temp)
		return "", fmt.Errorf("keeping the damaged file: %w", err)
	}
	if err := errors.Join(os.Rename(temp, path), syncDir(path)); err != nil {
		return kept, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return kept, err
	}
	return kept, bootMark{opts.BootID, inode(info)}.write(l)
}

// write makes a bindings file.
func write(path string, bindings []ecs.Binding, boot string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		v, err := format(tx, path, boot)
		if err != nil {
			return err
		}
		for _, b := range bindings {
			for _, p := range b.Addrs {
				if v.taken(p.Addr()) {
					return fmt.Errorf("%w: %s, which %s has as well", ecs.ErrAddrTaken, p.Addr(), b.Attachment)
				}
			}
			b.BootID = boot
			if err := v.grant(b); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, db.Close())
}
