package bindingdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

// A Reader answers from a snapshot of the bindings file, and checks each time that the file
// has not changed since: a binding is visible once [Store.Acquire] returns and gone once
// [Store.Release] does. It keeps nobody waiting: it takes the lock only to load, and only
// as a reader. It may be used by many goroutines at once.
type Reader struct {
	path    string
	opts    Options
	loading chan struct{} // holds one token while a load is in progress
	current atomic.Pointer[Snapshot]
	loads   atomic.Uint64
}

// NewReader makes a reader of the bindings file at path, which need not exist yet.
func NewReader(path string, opts Options) (*Reader, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Reader{path: path, opts: opts, loading: make(chan struct{}, 1)}, nil
}

// Binding returns the binding of an address as of now. The pointer is the same for as long
// as the binding is, so that it may serve as the key of a cache; what it points to must not
// be changed. Errors: [ecs.ErrNoBinding], [ecs.ErrBusy] after the lock wait,
// [ecs.ErrDamaged], [ecs.ErrNewerSchema], and those of the file system.
func (r *Reader) Binding(addr netip.Addr) (*ecs.Binding, error) {
	s, err := r.Snapshot()
	if err != nil {
		return nil, err
	}
	if b := s.byAddr[addr]; b != nil {
		return b, nil
	}
	return nil, ecs.ErrNoBinding
}

// Loads is how often the file was loaded.
func (r *Reader) Loads() uint64 { return r.loads.Load() }

// Snapshot returns all bindings as of now, with the errors of Binding. A file that does not
// exist has no bindings, since nothing has been attached yet.
func (r *Reader) Snapshot() (*Snapshot, error) {
	if s := r.current.Load(); r.fresh(s) {
		return s, nil
	}
	return r.load()
}

// load returns a snapshot that was taken after load was called. Callers at the same time
// share one: each checks again before it loads.
func (r *Reader) load() (*Snapshot, error) {
	timeout := time.NewTimer(r.opts.Wait)
	defer timeout.Stop()
	select {
	case r.loading <- struct{}{}:
	case <-timeout.C:
		return nil, busy(lockPath(r.path))
	}
	old := r.current.Load()
	if r.fresh(old) {
		<-r.loading
		return old, nil
	}
	if old == nil {
		old = &Snapshot{}
	}
	type outcome struct {
		s   *Snapshot
		err error
	}
	// The wait for the lock has no end and can't be cancelled: the load goes on when the
	// caller's time is over.
	done := make(chan outcome, 1)
	go func() {
		s, err := r.read(old)
		if err == nil {
			r.current.Store(s)
			r.loads.Add(1)
			old.file.Close() // whoever still reads from it gets an error, and calls load
		}
		<-r.loading
		done <- outcome{s, err}
	}()
	select {
	case o := <-done:
		return o.s, o.err
	case <-timeout.C:
		return nil, busy(lockPath(r.path))
	}
}

// fresh reports whether the file is what it was when s was taken: the path still names it
// and no transaction has been committed since. It costs one stat and two reads of 64 bytes.
func (r *Reader) fresh(s *Snapshot) bool {
	if s == nil {
		return false
	}
	info, err := os.Stat(r.path)
	if s.file == nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return err == nil && identify(info) == s.state.identity && s.state.current(s.file)
}

// read loads the file.
func (r *Reader) read(old *Snapshot) (*Snapshot, error) {
	if _, err := os.Stat(r.path); errors.Is(err, fs.ErrNotExist) {
		return &Snapshot{}, nil
	}
	l, err := lock(context.Background(), lockPath(r.path), unix.LOCK_SH, forever)
	if err != nil {
		return nil, fmt.Errorf("locking the bindings file: %w", err)
	}
	defer l.Close()
	if readBootMark(l).outlived(r.path, r.opts.BootID) {
		return &Snapshot{}, nil // until the first writer of this boot comes
	}

	s := &Snapshot{}
	if err := r.readInto(s, old); err != nil {
		return nil, fmt.Errorf("reading the bindings file: %w", err)
	}
	if s.file, err = s.state.open(r.path); err != nil {
		return nil, fmt.Errorf("reading the bindings file: %w", err)
	}
	return s, nil
}

// readInto reads the file's state and bindings.
func (r *Reader) readInto(s, old *Snapshot) error {
	return catchDamage(r.path, func() error {
		db, err := bbolt.Open(r.path, 0, &bbolt.Options{
			ReadOnly: true,
			// All of it is read. Mapping the pages at once saves 0.2 ms of page faults with
			// 1021 bindings (BenchmarkReload: 1.5 to 2 ms).
			MmapFlags:    unix.MAP_POPULATE,
			NoStatistics: true,
			OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
				f, err := os.OpenFile(path, flag, mode)
				if err != nil {
					return nil, err
				}
				if s.state, err = inspect(f); err != nil {
					f.Close()
					return nil, err
				}
				return f, nil
			},
		})
		if err != nil {
			return err
		}
		defer db.Close() // after a panic too
		return db.View(func(tx *bbolt.Tx) error { return s.fill(tx, r.path, r.opts.BootID, old) })
	})
}

// A Snapshot is the bindings of one moment. It does not change.
type Snapshot struct {
	state state
	file  *os.File // open while the snapshot is the current one; nil if there was no file

	byAddr map[netip.Addr]*ecs.Binding
	byRaw  map[string]*entry // by what the file has for it
}

// An entry is a binding beside the text it was read from.
type entry struct {
	raw     string
	binding ecs.Binding
}

// All returns the bindings in the order of their first addresses.
func (s *Snapshot) All() []*ecs.Binding {
	all := make([]*ecs.Binding, 0, len(s.byRaw))
	for _, e := range s.byRaw {
		all = append(all, &e.binding)
	}
	slices.SortFunc(all, func(a, b *ecs.Binding) int { return a.Addrs[0].Addr().Compare(b.Addrs[0].Addr()) })
	return all
}

// fill reads all bindings, except those of an earlier boot. Bindings that have not changed
// since the snapshot old keep their pointers.
func (s *Snapshot) fill(tx *bbolt.Tx, path, boot string, old *Snapshot) error {
	v, err := open(tx, path)
	if err != nil && !errors.Is(err, errForeign) {
		return err
	}
	if err == nil && string(v.meta.Get(keyBoot)) != boot {
		return nil
	}
	if s.state.torn() {
		return damaged(path, "a meta page is not valid")
	}
	if err != nil {
		return s.fillAWS(tx, path, boot)
	}
	s.byAddr = make(map[netip.Addr]*ecs.Binding, len(old.byAddr)+1)
	s.byRaw = make(map[string]*entry, len(old.byRaw)+1)
	return v.bindings.ForEach(func(key, raw []byte) error {
		addr, ok := netip.AddrFromSlice(key)
		if !ok {
			return damaged(path, fmt.Sprintf("the address %x", key))
		}
		e := s.byRaw[string(raw)] // a second address of one
		if e == nil {
			e = old.byRaw[string(raw)]
		}
		if e == nil {
			e = &entry{raw: string(raw)}
			if err := json.Unmarshal(raw, &e.binding); err != nil {
				return damaged(path, fmt.Sprintf("the binding of %s: %v", addr, err))
			}
		}
		if !e.binding.Has(addr) {
			return damaged(path, fmt.Sprintf("the binding of %s is one of %v", addr, e.binding.Addrs))
		}
		s.byAddr[addr], s.byRaw[e.raw] = &e.binding, e
		return nil
	})
}

// fillAWS reads a file of AWS's plugin that no plugin of ours has taken over yet.
func (s *Snapshot) fillAWS(tx *bbolt.Tx, path, boot string) error {
	file, err := readAWS(tx, path)
	if err != nil {
		return err
	}
	s.byAddr = make(map[netip.Addr]*ecs.Binding)
	s.byRaw = make(map[string]*entry)
	for _, b := range file.bindings {
		b.BootID = boot
		e := &entry{raw: b.ID, binding: b}
		s.byRaw[e.raw] = e
		for _, p := range b.Addrs {
			s.byAddr[p.Addr()] = &e.binding
		}
	}
	return nil
}
