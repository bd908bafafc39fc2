package docker

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A priority says before which others a container is inspected.
type priority int

const (
	// urgent: a task's container has started or ended, and is to be attached or detached. It
	// has inspectors of its own, and so never waits for those of other priorities.
	urgent  priority = iota
	awaited          // a request waits for it
	ofTask           // it runs, with the label of a task
	other
	priorities
)

// A backlog is the containers that have to be inspected, each once however often it is
// asked for, and never twice at the same time. Its lock is the index's.
type backlog struct {
	inspections map[string]*inspection
	// queues are the IDs of those to come. One that was prioritized stands in a queue of
	// less priority as well; there it is passed over.
	queues [priorities][]string
	// failed are the containers whose last inspection failed.
	failed map[string]*inspection

	urgent, others *sync.Cond // something was put into its queues
}

// An inspection is in one of three states, which its backlog changes:
//
//	queued    not busy; add makes it
//	busy      take has given it to an inspector; add only marks it as to be repeated
//	over      finish has taken it out of the backlog, or put it back into the queue if it
//	          was asked for meanwhile; drop ends all of them
type inspection struct {
	done     chan struct{} // closed when it is over
	since    time.Time     // when it was asked for
	priority priority
	busy     bool
	again    bool  // asked for once more since it is busy
	report   bool  // the watcher is told of the container, whatever comes of it
	err      error // why it failed
}

func (b *backlog) init(mu *sync.Mutex) {
	b.urgent, b.others = sync.NewCond(mu), sync.NewCond(mu)
	b.drop()
}

// drop forgets what is to be done. Those who wait for it are told that it is over.
func (b *backlog) drop() {
	for _, ins := range b.inspections {
		close(ins.done)
	}
	b.inspections, b.failed = make(map[string]*inspection), make(map[string]*inspection)
	b.queues = [priorities][]string{}
}

// add has the container inspected after now.
func (b *backlog) add(id string, p priority) *inspection {
	ins := b.inspections[id]
	if ins == nil {
		ins = &inspection{done: make(chan struct{}), since: time.Now(), priority: priorities}
		b.inspections[id] = ins
	}
	ins.again = ins.busy
	b.prioritize(id, ins, p)
	return ins
}

// prioritize puts an inspection before those of less priority. For one that is busy it
// says how it is queued if it has to be repeated.
func (b *backlog) prioritize(id string, ins *inspection, p priority) {
	if p >= ins.priority {
		return
	}
	ins.priority = p
	if ins.busy {
		return
	}
	b.queues[p] = append(b.queues[p], id)
	if p == urgent {
		b.urgent.Signal()
	} else {
		b.others.Signal()
	}
}

// retry has those inspected once more whose last inspection failed. It returns how many
// they are, and why one of them failed.
func (b *backlog) retry() (failed int, example error) {
	for id, ins := range b.failed {
		example = ins.err
		again := b.add(id, ins.priority)
		again.report = again.report || ins.report
	}
	return len(b.failed), example
}

// take waits for a container to inspect, an urgent one or another. It returns false when
// ctx has ended and the backlog was woken.
func (b *backlog) take(ctx context.Context, isUrgent bool) (string, *inspection, bool) {
	added, queues := b.others, b.queues[awaited:]
	if isUrgent {
		added, queues = b.urgent, b.queues[:awaited]
	}
	for ctx.Err() == nil {
		i := slices.IndexFunc(queues, func(q []string) bool { return len(q) > 0 })
		if i < 0 {
			added.Wait()
			continue
		}
		id := queues[i][0]
		queues[i] = queues[i][1:]
		if ins := b.inspections[id]; ins != nil && !ins.busy {
			ins.busy = true
			return id, ins, true
		}
	}
	return "", nil, false
}

// wake has all who wait in take look whether their context has ended.
func (b *backlog) wake() {
	b.urgent.L.Lock()
	defer b.urgent.L.Unlock()
	b.urgent.Broadcast()
	b.others.Broadcast()
}

// finish ends an inspection that was taken, or queues it once more if it was asked for
// meanwhile.
func (b *backlog) finish(id string, ins *inspection, err error) {
	if b.inspections[id] != ins {
		return // dropped
	}
	delete(b.failed, id)
	if ins.err = err; err != nil {
		b.failed[id] = ins
	}
	if !ins.again {
		delete(b.inspections, id)
		close(ins.done)
		return
	}
	p := min(ins.priority, awaited) // what is known is out of date already
	ins.busy, ins.again, ins.priority = false, false, priorities
	b.prioritize(id, ins, p)
}
