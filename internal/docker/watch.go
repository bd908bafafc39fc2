package docker

import (
	"errors"
	"fmt"

	"taskmeta/internal/ecs"
)

// A Watcher is told what becomes of the containers, in the order in which the index learns
// it. Its functions must not wait, nor call the index, which is locked.
type Watcher struct {
	// Changed is told of a container that has started or ended, and of each that runs whenever
	// all were compared with the daemon's list. One that has ended has Pid 0, and its ID alone
	// if the daemon does not know it any more.
	Changed func(Container)
	// Listed says that all containers were compared with the daemon's list. Those that
	// changed are told of when they have been inspected.
	Listed func()
	// Lost says that of no start is told until the daemon is back, and why.
	Lost func(error)
}

// Watch has w told what becomes of the containers, beginning with those that run now, until
// stop is called. There is one watcher at a time.
func (x *Index) Watch(w Watcher) (stop func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.watcher = &w
	switch {
	case x.lost.Load() == nil:
		x.reportAll()
	case x.err != nil:
		x.reportLost()
	}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.watcher = nil
	}
}

// Recheck has a container inspected before others, and the watcher told of it whatever
// comes of it.
func (x *Index) Recheck(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.backlog.add(id, urgent).report = true
}

// learn takes down what an attempt of an inspection says, and tells the watcher.
func (x *Index) learn(id string, ins *inspection, attempt int, e *entry, err error) {
	gone := errors.Is(err, ErrNoContainer)
	if gone {
		err = nil
	}
	if err == nil && x.backlog.counts(id, ins, attempt, !gone && e.pid != 0) {
		before := x.catalogue.entries[id]
		if gone {
			x.catalogue.remove(id)
		} else {
			x.replace(e)
		}
		x.report(id, before, x.backlog.reported(id, ins))
	}
	x.backlog.finish(id, ins, attempt, err)
}

// report tells the watcher of a container that has started or ended by what was known
// before, or in any case.
func (x *Index) report(id string, before *entry, always bool) {
	now, pid := Container{ID: id}, 0
	if e := x.catalogue.entries[id]; e != nil {
		now = e.summary()
	}
	if before != nil {
		pid = before.pid
	}
	if x.watcher != nil && (always || now.Pid != pid) {
		x.watcher.Changed(now)
	}
}

// reportAll tells the watcher of the containers that run. Those that are about to be
// inspected are told of then.
func (x *Index) reportAll() {
	if x.watcher == nil {
		return
	}
	for id, e := range x.catalogue.entries {
		if e.pid == 0 {
			continue
		}
		if ins := x.backlog.inspections[id]; ins != nil {
			ins.report = true
		} else {
			x.watcher.Changed(e.summary())
		}
	}
	x.watcher.Listed()
}

func (x *Index) reportLost() {
	if x.watcher != nil {
		x.watcher.Lost(fmt.Errorf("%w: %w", ecs.ErrDockerUnavailable, x.err))
	}
}
