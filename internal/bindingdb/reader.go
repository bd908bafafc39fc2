package bindingdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
)

// A Reader answers from a snapshot of the bindings file, and makes sure each time that the
// file has not changed since: a binding is seen as soon as [Store.Acquire] has returned,
// and not any more once [Store.Release] has. It keeps nobody waiting, since it takes the
// lock only to load, and only as a reader. It may be used by many goroutines at once.
type Reader struct {
	path    string
	cpath   *byte // path as the kernel wants it, so that a look at the file allocates nothing
	opts    Options
	turn    chan struct{} // holds one token while a load is going on
	current atomic.Pointer[Snapshot]
	loads   atomic.Uint64
}

// NewReader makes a reader of the bindings file at path, which need not exist yet.
func NewReader(path string, opts Options) (*Reader, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	cpath, err := unix.BytePtrFromString(path)
	if err != nil {
		return nil, fmt.Errorf("the path of the bindings file %q: %w", path, err)
	}
	return &Reader{path: path, cpath: cpath, opts: opts, turn: make(chan struct{}, 1)}, nil
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

// load returns a snapshot that was taken after load was called. Those who call it at the
// same time share one: each looks again when its turn comes.
func (r *Reader) load() (*Snapshot, error) {
	timeout := time.NewTimer(r.opts.Wait)
	defer timeout.Stop()
	select {
	case r.turn <- struct{}{}:
	case <-timeout.C:
		return nil, busy(lockPath(r.path))
	}
	if s := r.current.Load(); r.fresh(s) {
		<-r.turn
		return s, nil
	}
	type outcome struct {
		s   *Snapshot
		err error
	}
	// The wait for the lock can't be called off, so it keeps the turn and the caller leaves.
	done := make(chan outcome, 1)
	go func() {
		s, err := r.read()
		if err == nil {
			r.current.Store(s)
			r.loads.Add(1)
		}
		<-r.turn
		done <- outcome{s, err}
	}()
	select {
	case o := <-done:
		return o.s, o.err
	case <-timeout.C:
		return nil, busy(lockPath(r.path))
	}
}

// fresh reports whether the file is what it was when s was taken. It costs one statx, and
// allocates nothing.
func (r *Reader) fresh(s *Snapshot) bool {
	if s == nil {
		return false
	}
	now, err := r.identify()
	if s.window == nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return err == nil && now == s.state.identity && s.window.holds(&s.state)
}

// identify looks at what stands at the path now.
func (r *Reader) identify() (identity, error) {
	var st unix.Statx_t
	const want = unix.STATX_INO | unix.STATX_SIZE
	dir := unix.AT_FDCWD
	_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(dir), uintptr(unsafe.Pointer(r.cpath)),
		0, want, uintptr(unsafe.Pointer(&st)), 0)
	if errno != 0 {
		return identity{}, errno
	}
	return identity{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino, int64(st.Size)}, nil
}

// forever is how long a load waits for the lock; those who ask for it do not.
const forever time.Duration = math.MaxInt64

// read loads the file.
func (r *Reader) read() (*Snapshot, error) {
	if _, err := os.Stat(r.path); errors.Is(err, fs.ErrNotExist) {
		return &Snapshot{}, nil
	}
	l, err := lock(context.Background(), lockPath(r.path), unix.LOCK_SH, forever)
	if err != nil {
		return nil, fmt.Errorf("locking the bindings file: %w", err)
	}
	defer l.Close()
	if readMark(l).outlived(r.path, r.opts.BootID) {
		return &Snapshot{}, nil // until the first writer of this boot comes
	}

	old := r.current.Load()
	if old == nil {
		old = &Snapshot{}
	}
	s := &Snapshot{}
	err = guarded(r.path, func() error {
		db, err := bbolt.Open(r.path, 0, &bbolt.Options{
			ReadOnly:     true,
			MmapFlags:    unix.MAP_POPULATE, // all of it is read
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
	if err != nil {
		return nil, fmt.Errorf("reading the bindings file: %w", err)
	}
	if s.window, err = windowOn(r.path, s.state, old); err != nil {
		return nil, fmt.Errorf("reading the bindings file: %w", err)
	}
	return s, nil
}

// A window is the start of a bindings file, with both metas, in memory: what a writer has
// committed is in it, since the kernel has one copy of a page for all.
type window struct {
	mem      []byte
	dev, ino uint64
}

// windowOn returns a window on the file of the state st: the one of the old snapshot if the
// file is still the same.
func windowOn(path string, st state, old *Snapshot) (*window, error) {
	if w := old.window; w != nil && w.dev == st.dev && w.ino == st.ino && old.state.pageSize == st.pageSize {
		return w, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found, err := inspect(f)
	if err == nil && (found.dev != st.dev || found.ino != st.ino) {
		err = fmt.Errorf("%w: %s was replaced at this moment", ecs.ErrBusy, path)
	}
	if err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.pageSize)+pageHeader+metaSize, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mapping the start of %s: %w", path, err)
	}
	w := &window{mem: mem, dev: st.dev, ino: st.ino}
	// When nobody looks through it any more; Munmap fails only on what is not mapped.
	runtime.AddCleanup(w, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	return w, nil
}

// holds reports whether the metas are those of st. A page that a truncation took away at
// this moment is none.
func (w *window) holds(st *state) (same bool) {
	defer runtime.KeepAlive(w)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	second := st.pageSize + pageHeader
	return meta(w.mem[pageHeader:pageHeader+metaSize]) == st.metas[0] && meta(w.mem[second:second+metaSize]) == st.metas[1]
}

// A Snapshot is the bindings of one moment. It does not change.
type Snapshot struct {
	window *window // nil if there was no file
	state  state

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

// fill reads all bindings, those of an earlier boot left out. What is as old has it is
// taken from there.
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
