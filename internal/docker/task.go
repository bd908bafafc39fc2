package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"taskmeta/internal/ecs"
)

// A view is the task of one binding as it was last put together.
type view struct {
	mu      sync.Mutex
	gen     uint64 // of the index when the view was last compared with it
	task    *ecs.Task
	owner   string
	members []*ecs.Container

	pid      int // of the process whose namespace has addrs, 0 if none has
	addrs    []netip.Addr
	addrsAt  time.Time
	addrsErr error

	turn     chan struct{} // holds one token while the daemon is searched
	searched time.Time     // when the last search was over
}

func newView() *view { return &view{turn: make(chan struct{}, 1)} }

// Task returns the task of a binding, the same pointer for as long as nothing of it
// changes, and how long ago that was known to be so if the daemon is gone, else 0.
//
// It waits, for two seconds at most, for what is known to have changed to be inspected,
// and searches for a task that is not known at all once a second and no more often. Errors:
// [ecs.ErrTaskNotReady] if the daemon knows no container of the task,
// [ecs.ErrDockerUnavailable] if it cannot be asked.
func (x *Index) Task(ctx context.Context, b *ecs.Binding) (*ecs.Task, time.Duration, error) {
	v := x.views.Get(b)
	if t := v.current(x); t != nil {
		return t, x.age(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, x.times.patience)
	defer cancel()
	select {
	case <-x.tried:
	case <-ctx.Done():
	}
	for searched := false; ; {
		t, pending := x.assemble(v, b, ctx.Err() == nil)
		if pending != nil {
			select {
			case <-pending:
			case <-ctx.Done():
			}
			continue
		}
		if t != nil {
			return t, x.age(), nil
		}
		if x.lost.Load() != nil {
			return nil, 0, ecs.ErrDockerUnavailable
		}
		if searched {
			return nil, 0, x.unknown(b)
		}
		searched = true
		if err := x.searchOnce(ctx, v, b); err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ecs.ErrDockerUnavailable, err)
		}
	}
}

// unknown says why nothing is known of the task of a binding, though the daemon was searched.
func (x *Index) unknown(b *ecs.Binding) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	members := x.catalogue.family(b).members
	if len(members) == 0 {
		return ecs.ErrTaskNotReady
	}
	err := errUninspected
	if f := x.backlog.failed[members[0].id]; f != nil {
		err = f.err
	}
	return fmt.Errorf("%w: %w", ecs.ErrDockerUnavailable, err)
}

var errUninspected = errors.New("it lists containers of the task and has described none of them yet")

// Known returns the task of a binding as far as it is known, nil if it is not. Nobody is
// asked, and nobody waited for: it is for those who look at all tasks.
func (x *Index) Known(b *ecs.Binding) *ecs.Task {
	v := x.views.Get(b)
	if t := v.current(x); t != nil {
		return t
	}
	t, _ := x.assemble(v, b, false)
	return t
}

// current returns the task if nothing has changed in the index since it was put together.
func (v *view) current(x *Index) *ecs.Task {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.task == nil || v.gen != x.gen.Load() || v.pid != 0 && time.Since(v.addrsAt) > x.times.addrs {
		return nil
	}
	return v.task
}

// assemble puts the task together of what is known, nil if that is nothing. If something
// of it is about to be inspected and may be waited for, it returns what to wait for instead.
func (x *Index) assemble(v *view, b *ecs.Binding, wait bool) (*ecs.Task, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	gen := x.gen.Load()
	members, owner, pid, pending := x.members(b, wait)
	if pending != nil {
		return nil, pending
	}
	if len(members) == 0 {
		v.task = nil
		return nil, nil
	}
	moved := x.readAddrs(v, pid)
	if v.task == nil || moved || v.owner != owner || !slices.Equal(v.members, members) {
		v.task = ecs.NewTask(b, owner, members, v.addrs)
		v.owner, v.members = owner, members
	}
	v.gen = gen
	return v.task, nil
}

// members returns the inspected containers of a binding, which of them owns the network
// namespace, and the process that holds that, 0 if none does. If wait is set and one of
// them is about to be inspected, it returns what to wait for.
func (x *Index) members(b *ecs.Binding, wait bool) (members []*ecs.Container, owner string, pid int, pending <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.catalogue.family(b)
	wait = wait && x.lost.Load() == nil
	for _, e := range f.members {
		if wait && x.prioritize(e) {
			pending = x.backlog.inspections[e.id].done
		}
		if e.container != nil {
			members = append(members, e.container)
		}
	}
	if f.owner != nil {
		owner, pid = f.owner.id, f.owner.pid
		if f.owner.host {
			pid = 0
		}
	}
	slices.SortFunc(members, func(a, b *ecs.Container) int { return strings.Compare(a.ID, b.ID) })
	return members, owner, pid, pending
}

// prioritize has the container inspected soon if it is about to be at all, and reports
// whether that is worth waiting for: one that has been inspected before is not once the
// daemon has kept us waiting.
func (x *Index) prioritize(e *entry) bool {
	ins := x.backlog.inspections[e.id]
	if ins == nil || x.backlog.failed[e.id] != nil {
		return false
	}
	if e.container != nil && time.Since(ins.since) > x.times.patience {
		return false
	}
	x.backlog.prioritize(e.id, ins, awaited)
	return true
}

// readAddrs reads the addresses of the namespace of a process unless that was done a
// moment ago, and reports whether they have changed. What is known stays known while they
// cannot be read.
func (x *Index) readAddrs(v *view, pid int) bool {
	if pid == v.pid && (pid == 0 || time.Since(v.addrsAt) <= x.times.addrs) {
		return false
	}
	before := v.addrs
	if pid != v.pid {
		v.addrs = nil
	}
	v.pid, v.addrsAt = pid, time.Now()
	if pid != 0 {
		addrs, err := x.cfg.Addresses(pid)
		if err == nil {
			v.addrs = addrs
		} else {
			v.addrsAt = time.Now().Add(x.times.unread - x.times.addrs)
			if v.addrsErr == nil {
				x.cfg.Logger.Warn("the addresses of a task cannot be read", "pid", pid, "err", err)
			}
		}
		v.addrsErr = err
	}
	return !slices.Equal(before, v.addrs)
}

// searchOnce searches for the containers of an unknown task. Requests that come meanwhile
// wait for the same search.
func (x *Index) searchOnce(ctx context.Context, v *view, b *ecs.Binding) error {
	select {
	case v.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-v.turn }()
	if time.Since(v.searched) < x.times.search {
		return nil
	}
	err := x.search(ctx, b)
	v.searched = time.Now()
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil // the client has left
	}
	return err
}
