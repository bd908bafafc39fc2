package docker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"taskmeta/internal/backoff"
)

// A priority says before which others a container is inspected.
type priority int

const (
	// urgent: a task's container has started or ended, and is to be attached or detached.
	urgent  priority = iota
	awaited          // a request waits for it
	ofTask           // it runs, with the label of a task
	other
	priorities
)

// A backlog is the containers that have to be inspected, each once however often it is
// asked for. Its lock is the index's.
type backlog struct {
	inspections map[string]*inspection
	// queues are the IDs of those to come. One that was prioritized stands in a queue of
	// less priority as well; there it is passed over.
	queues [priorities][]string
	// failed are the containers whose last inspection failed. Each is inspected again after
	// a pause that grows.
	failed map[string]*failure

	soon, later *sync.Cond // something was put into the queues of urgent and awaited, or the others
}

// An inspection is of one container, by one attempt or several. The backlog changes its
// state:
//
//	queued    take begins an attempt
//	busy      its last attempt began a moment ago; add only marks it as to be repeated
//	slow      its last attempt has no answer yet and is not waited for any longer: add queues
//	          it once more, beside the attempt. Whichever is answered is taken down.
//	over      finish has taken it out of the backlog, or drop has, or queued it again if it was
//	          asked for meanwhile
type inspection struct {
	done     chan struct{} // closed when it is over
	since    time.Time     // when it was asked for
	priority priority
	queued   bool
	busy     bool
	again    bool // asked for once more since it is busy
	report   bool // the watcher is told of the container, whatever comes of it

	begun   int // attempts, by which they are numbered from 1
	slow    int // attempts that are slow
	learned int // the last attempt whose answer was taken down
	// stale is the last attempt that began before an end of the container that is known by
	// its event. What it says of a process is out of date.
	stale int
}

// A failure is what has become of the last inspections of a container.
type failure struct {
	err    error
	report bool // as an inspection's
	pauses backoff.Backoff
}

func (b *backlog) init(mu *sync.Mutex) {
	b.soon, b.later = sync.NewCond(mu), sync.NewCond(mu)
	b.drop()
}

// drop forgets what is to be done. Those who wait for it are told that it is over.
func (b *backlog) drop() {
	for _, ins := range b.inspections {
		close(ins.done)
	}
	b.inspections, b.failed = make(map[string]*inspection), make(map[string]*failure)
	b.queues = [priorities][]string{}
}

// add has the container inspected after now.
func (b *backlog) add(id string, p priority) *inspection {
	ins := b.inspections[id]
	if ins == nil {
		ins = &inspection{done: make(chan struct{}), since: time.Now(), priority: priorities}
		b.inspections[id] = ins
	}
	switch {
	case ins.queued:
		b.prioritize(id, ins, p)
	case ins.busy:
		ins.again, ins.priority = true, min(ins.priority, p)
	default:
		b.queue(id, ins, p)
	}
	return ins
}

func (b *backlog) queue(id string, ins *inspection, p priority) {
	ins.queued, ins.again, ins.priority = true, false, p
	b.queues[p] = append(b.queues[p], id)
	if p <= awaited {
		b.soon.Signal()
	} else {
		b.later.Signal()
	}
}

// prioritize puts an inspection that is queued before those of less priority. For one that
// is busy it says how it is queued if it has to be repeated.
func (b *backlog) prioritize(id string, ins *inspection, p priority) {
	switch {
	case p >= ins.priority:
	case ins.queued:
		b.queue(id, ins, p)
	default:
		ins.priority = p
	}
}

// take waits for a container to inspect, one of those that are needed soon or another. The
// attempt is a number. It returns false when ctx has ended and the backlog was woken.
func (b *backlog) take(ctx context.Context, soon bool) (id string, ins *inspection, attempt int, ok bool) {
	added, queues := b.later, b.queues[ofTask:]
	if soon {
		added, queues = b.soon, b.queues[:ofTask]
	}
	for ctx.Err() == nil {
		i := slices.IndexFunc(queues, func(q []string) bool { return len(q) > 0 })
		if i < 0 {
			added.Wait()
			continue
		}
		id := queues[i][0]
		queues[i] = queues[i][1:]
		if ins := b.inspections[id]; ins != nil && ins.queued {
			ins.queued, ins.busy = false, true
			ins.begun++
			return id, ins, ins.begun, true
		}
	}
	return "", nil, 0, false
}

// wake has all who wait in take look whether their context has ended.
func (b *backlog) wake() {
	b.soon.L.Lock()
	defer b.soon.L.Unlock()
	b.soon.Broadcast()
	b.later.Broadcast()
}

// isSlow says that an attempt has no answer yet. If the container was asked for meanwhile,
// it is queued once more.
func (b *backlog) isSlow(id string, ins *inspection, attempt int) {
	if b.inspections[id] != ins || attempt != ins.begun || !ins.busy {
		return
	}
	ins.busy = false
	ins.slow++
	if ins.again {
		b.queue(id, ins, min(ins.priority, awaited))
	}
}

// counts reports whether the answer of an attempt is to be taken down: not if it is over, if
// a later one was answered, or if it tells of a process that has ended since.
func (b *backlog) counts(id string, ins *inspection, attempt int, runs bool) bool {
	return b.inspections[id] == ins && attempt > ins.learned && !(runs && attempt <= ins.stale)
}

// finish ends an attempt. If no other is to come the inspection is over.
func (b *backlog) finish(id string, ins *inspection, attempt int, err error) {
	if b.inspections[id] != ins {
		return // over, or dropped
	}
	if err == nil {
		ins.learned = max(ins.learned, attempt)
		delete(b.failed, id)
	}
	if attempt < ins.begun || ins.queued {
		return // a later attempt is under way, or to come
	}
	ins.busy = false
	if ins.again {
		b.queue(id, ins, min(ins.priority, awaited)) // what is known is out of date already
		return
	}
	delete(b.inspections, id)
	close(ins.done)
	if err != nil {
		b.fail(id, ins, err)
	}
}

// fail has a container inspected once more after a pause. One that the daemon does not
// answer about stands behind all others then.
func (b *backlog) fail(id string, ins *inspection, err error) {
	f := b.failed[id]
	if f == nil {
		f = &failure{}
		b.failed[id] = f
	}
	f.err, f.report = err, f.report || ins.report
	p := ins.priority
	if errors.Is(err, context.DeadlineExceeded) {
		p = other
	}
	time.AfterFunc(f.pauses.Next(), func() {
		b.soon.L.Lock()
		defer b.soon.L.Unlock()
		if b.failed[id] == f && b.inspections[id] == nil {
			b.add(id, p)
		}
	})
}

// reported reports whether the watcher is to be told of the container whatever comes of its
// inspection.
func (b *backlog) reported(id string, ins *inspection) bool {
	f := b.failed[id]
	return ins.report || f != nil && f.report
}

// failing returns how many containers could not be inspected when it was last tried, and why
// one of them could not.
func (b *backlog) failing() (n int, example error) {
	for _, f := range b.failed {
		example = f.err
	}
	return len(b.failed), example
}
