// Package bindingdb keeps the bindings between addresses and tasks: one bbolt file, which
// the plugins change through a [Store] and the resolver follows with a [Reader].
//
// Every operation is one transaction. Writers and readers wait in the queue of a lock file
// beside the bindings file. Only a transaction that succeeds changes the file: a damaged file
// and one of a later version are left alone. A file of an earlier boot is replaced, damaged or
// not, because none of its bindings is valid any more.
package bindingdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

const (
	// DefaultPath is on a file system that a restart empties: network namespaces do not
	// outlive a boot, and neither should their addresses.
	DefaultPath = "/run/taskmeta/bindings.db"
	// DefaultWait is how long to wait for the lock.
	DefaultWait = 5 * time.Second
)

// Options of a [Store] and of a [Reader].
type Options struct {
	// Create makes a file that is missing, and its directory. A Reader never does.
	Create bool
	// Wait is how long to wait for the lock; 0 stands for [DefaultWait].
	Wait time.Duration
	// BootID stands for the kernel's, which "" means.
	BootID string
}

func (o Options) withDefaults() (Options, error) {
	if o.Wait == 0 {
		o.Wait = DefaultWait
	}
	if o.BootID != "" {
		return o, nil
	}
	var err error
	o.BootID, err = BootID()
	return o, err
}

func lockPath(path string) string { return path + ".lock" }

// A Store is the bindings file, locked for this process until Close. It is for one
// operation of a plugin and must not be kept open: everybody else waits.
type Store struct {
	path string
	lock *os.File
	file *os.File // db's
	db   *bbolt.DB
	torn bool
}

// Open locks the bindings file at path and opens it. Errors: [ecs.ErrBusy],
// [ecs.ErrDamaged], [ecs.ErrNewerSchema], fs.ErrNotExist without Create, and those of the
// file system. Bindings of an earlier boot are dropped, and a file of AWS's plugin is
// taken over.
func Open(ctx context.Context, path string, opts Options) (_ *Store, err error) {
	opts, err = opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if opts.Create {
		// For the owner alone: what is inside tells of all tasks, and the lock could be
		// held by anyone who may open it.
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("making the directory of the bindings file: %w", err)
		}
	}
	s := &Store{path: path}
	if s.lock, err = lock(ctx, lockPath(path), unix.LOCK_EX, opts.Wait); err != nil {
		return nil, fmt.Errorf("locking the bindings file: %w", err)
	}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	if err := s.openOrCreate(opts); err != nil {
		return nil, err
	}
	if err := s.settle(opts.BootID); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) openOrCreate(opts Options) error {
	err := s.openFile(s.path, opts.Wait)
	if errors.Is(err, fs.ErrNotExist) && opts.Create {
		return s.create(opts)
	}
	if err != nil {
		err = fmt.Errorf("opening the bindings file: %w", err)
	} else {
		err = s.adopt(opts)
	}
	if errors.Is(err, ecs.ErrDamaged) && readBootMark(s.lock).outlived(s.path, opts.BootID) {
		slog.Info("dropped the bindings of an earlier boot", "path", s.path, "damage", err)
		return s.replace(opts)
	}
	return err
}

// settle makes sure that the file is known to be this boot's, after which its commits need
// not reach the disk.
func (s *Store) settle(boot string) error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if now := (bootMark{boot, inode(info)}); readBootMark(s.lock) != now {
		if err := now.write(s.lock); err != nil {
			return err
		}
	}
	s.db.NoSync, s.db.NoGrowSync = true, true
	return nil
}

// replace puts an empty file in the place of the one that is open, or could not be.
func (s *Store) replace(opts Options) error {
	s.abandonFile()
	return s.create(opts)
}

// openFile opens a file that exists.
func (s *Store) openFile(path string, wait time.Duration) error {
	return s.openBolt(path, wait, func(path string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(path, flag&^os.O_CREATE, mode)
		if err != nil {
			return nil, err
		}
		found, err := inspect(f)
		if err != nil {
			f.Close()
			return nil, err
		}
		s.torn = found.torn()
		return f, nil
	})
}

// openBolt opens a database whose file is opened by how. Only a process that does not
// take our lock can keep it from doing so; AWS's plugin is one.
func (s *Store) openBolt(path string, wait time.Duration, how func(string, int, os.FileMode) (*os.File, error)) error {
	options := &bbolt.Options{
		Timeout:      wait,
		NoStatistics: true,
		OpenFile: func(path string, flag int, mode os.FileMode) (f *os.File, err error) {
			s.file, err = how(path, flag, mode)
			return s.file, err
		},
	}
	err := catchDamage(path, func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, options)
		return err
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return busy(path)
	}
	return err
}

// create makes the file under another name and renames it when it is whole, so that a file
// without content is always a damaged one.
func (s *Store) create(opts Options) error {
	temp := s.path + ".new"
	err := s.openBolt(temp, opts.Wait, func(path string, flag int, mode os.FileMode) (*os.File, error) {
		return os.OpenFile(path, flag|os.O_TRUNC, mode)
	})
	if err == nil {
		err = s.db.Update(func(tx *bbolt.Tx) error {
			_, err := format(tx, s.path, opts.BootID)
			return err
		})
	}
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err == nil {
		err = syncDir(s.path)
	}
	if err != nil {
		os.Remove(temp)
		return fmt.Errorf("making the bindings file: %w", err)
	}
	return nil
}

// adopt makes the file one of our schema and of this boot.
func (s *Store) adopt(opts Options) error {
	boot := opts.BootID
	var fromBoot string
	err := s.view(func(v view) error {
		fromBoot = string(v.meta.Get(keyBoot))
		return nil
	})
	switch {
	case errors.Is(err, errForeign):
		if s.torn {
			return damaged(s.path, "a meta page is not valid")
		}
		var taken int
		if err := s.transact(func(tx *bbolt.Tx) (err error) {
			taken, err = adoptAWS(tx, s.path, boot)
			return err
		}); err != nil {
			return fmt.Errorf("taking over the file of the AWS plugin: %w", err)
		}
		slog.Info("took over the bindings file of the AWS plugin", "path", s.path, "bindings", taken)
		return nil
	case err != nil:
		return err
	case fromBoot == boot && s.torn:
		// What bbolt falls back to may lack the last binding. After another boot none is
		// needed, and a loss of power is the one thing that may do this.
		return damaged(s.path, "a meta page is not valid")
	case fromBoot != boot:
		var dropped int
		if err := s.view(func(v view) error {
			dropped = v.attachments.Stats().KeyN
			return nil
		}); err != nil {
			return err
		}
		// Nothing of the old one's pages is built upon: a loss of power may have left them
		// such that this goes well and a later commit does not.
		if err := s.replace(opts); err != nil {
			return fmt.Errorf("dropping the bindings of an earlier boot: %w", err)
		}
		slog.Info("dropped the bindings of an earlier boot", "path", s.path, "bindings", dropped, "boot", fromBoot)
	}
	return nil
}

// Close gives the file and its lock back.
func (s *Store) Close() error {
	return errors.Join(s.db.Close(), s.lock.Close())
}

// abandon gives both locks back after a failure, when bbolt may not be able to close. Its
// mapping is left behind, and would keep the file's lock.
func (s *Store) abandon() {
	s.abandonFile()
	s.lock.Close()
}

func (s *Store) abandonFile() {
	if s.file != nil {
		flock(s.file, unix.LOCK_UN)
		s.file.Close()
	}
	s.file, s.db = nil, nil
}

func (s *Store) view(fn func(view) error) error {
	return catchDamage(s.path, func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			v, err := open(tx, s.path)
			if err != nil {
				return err
			}
			return fn(v)
		})
	})
}

// errNothing ends a transaction that has nothing to change, without a commit.
var errNothing = errors.New("nothing to change")

func (s *Store) update(fn func(view) error) error {
	err := s.transact(func(tx *bbolt.Tx) error {
		v, err := open(tx, s.path)
		if err != nil {
			return err
		}
		return fn(v)
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

func (s *Store) transact(fn func(*bbolt.Tx) error) error {
	return catchDamage(s.path, func() error { return s.db.Update(fn) })
}

// A Want is one address that an attachment is to have.
type Want struct {
	Pool ecs.Pool
	// Addr asks for an address by name, with the length of its subnet; any if not valid.
	Addr netip.Prefix
}

// Acquire gives b's attachment an address for each want, records b with them, and returns
// it. The gateways of the wants are nobody's from then on. Errors: [ecs.ErrHeld] if the
// attachment has a binding already, [ecs.ErrAddrTaken], [ecs.ErrPoolFull].
func (s *Store) Acquire(b ecs.Binding, wants ...Want) (ecs.Binding, error) {
	err := s.update(func(v view) error {
		held, err := v.held(b.Attachment)
		if err == nil {
			return fmt.Errorf("%w: %s has %v", ecs.ErrHeld, b.Attachment, held.Addrs)
		}
		if !errors.Is(err, ecs.ErrNoBinding) {
			return err
		}
		b.BootID = string(v.meta.Get(keyBoot))
		b.Addrs = nil
		for _, w := range wants {
			if err := v.reserve(w.Pool.Gateway, b.Network); err != nil {
				return err
			}
			addr, err := v.pick(w)
			if err != nil {
				return err
			}
			b.Addrs = append(b.Addrs, addr)
		}
		return v.grant(b)
	})
	return b, err
}

// Release frees what the attachment holds, what AWS's plugin recorded for owner, and those
// of the addresses named that it recorded for nobody. It is no error if there is nothing
// to free.
func (s *Store) Release(a ecs.Attachment, owner string, named ...netip.Addr) error {
	return s.ReleaseBefore(math.MaxInt64, a, owner, named...)
}

// ReleaseBefore is Release, unless what the attachment holds was recorded at that time since
// boot or later: then it frees nothing. The key of an attachment may be in use again.
func (s *Store) ReleaseBefore(before time.Duration, a ecs.Attachment, owner string, named ...netip.Addr) error {
	return s.update(func(v view) error {
		if b, err := v.held(a); err == nil && b.Since >= before {
			return errNothing
		}
		result := errNothing
		for _, addr := range named {
			switch freed, err := v.freeAWS(addr); {
			case err != nil:
				return err
			case freed:
				result = nil
			}
		}
		for _, a := range []ecs.Attachment{a, awsAttachment(owner)} {
			b, err := v.held(a)
			if errors.Is(err, ecs.ErrNoBinding) {
				continue
			}
			if err == nil {
				err = v.revoke(b)
			}
			if err != nil {
				return err
			}
			result = nil
		}
		return result
	})
}

// Adopt records bindings that exist on the host and not in the file, with the addresses that
// they have, and returns those that it recorded. Left out is one whose attachment has a
// binding, or of whose addresses another has one.
func (s *Store) Adopt(bindings []ecs.Binding) (adopted []ecs.Binding, err error) {
	err = s.update(func(v view) error {
		adopted = nil
		for _, b := range bindings {
			_, err := v.held(b.Attachment)
			if err != nil && !errors.Is(err, ecs.ErrNoBinding) {
				return err
			}
			if err == nil || slices.ContainsFunc(b.Addrs, func(p netip.Prefix) bool { return v.taken(p.Addr()) }) {
				continue
			}
			b.BootID = string(v.meta.Get(keyBoot))
			if err := v.grant(b); err != nil {
				return err
			}
			adopted = append(adopted, b)
		}
		if len(adopted) == 0 {
			return errNothing
		}
		return nil
	})
	return adopted, err
}

// Lookup returns the binding of an attachment, or [ecs.ErrNoBinding].
func (s *Store) Lookup(a ecs.Attachment) (b ecs.Binding, err error) {
	err = s.view(func(v view) error {
		b, err = v.held(a)
		return err
	})
	return b, err
}

// Collect frees the bindings of a network that are not in valid, and returns them. One that
// was made after the list of the valid ones, at the time before since boot, is in use and
// stays.
func (s *Store) Collect(network string, valid map[ecs.Attachment]bool, before time.Duration) (freed []ecs.Binding, err error) {
	err = s.update(func(v view) error {
		freed = nil
		err := v.network(network, func(a ecs.Attachment) error {
			if valid[a] {
				return nil
			}
			b, err := v.held(a)
			if err == nil && b.Since < before {
				freed = append(freed, b)
			}
			return err
		})
		if err != nil {
			return err
		}
		if len(freed) == 0 {
			return errNothing
		}
		for _, b := range freed {
			if err := v.revoke(b); err != nil {
				return err
			}
		}
		return nil
	})
	return freed, err
}

// Room returns [ecs.ErrPoolFull] if a want could not be satisfied now.
func (s *Store) Room(wants ...Want) error {
	return s.view(func(v view) error {
		for _, w := range wants {
			if w.Addr.IsValid() {
				continue
			}
			if _, err := v.next(w.Pool); err != nil {
				return err
			}
		}
		return nil
	})
}
