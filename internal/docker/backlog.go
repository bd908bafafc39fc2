package docker

import (
	"context"
	"sync"
	"time"
)

// A backlog is the containers that have to be inspected, each once however often it is
// asked for, and never twice at the same time. Its lock is the index's.
type backlog struct {
	looks map[string]*look
	// What a request waits for stands in urgent, perhaps beside its place in queue.
	urgent, queue []string
	// failed are the containers whose last inspection failed, and why.
	failed map[string]error

	work *sync.Cond
}

// A look is an inspection to come, or under way.
type look struct {
	done   chan struct{} // closed when it is over
	since  time.Time     // when it was asked for
	urgent bool          // a request waits for it
	busy   bool          // under way
	again  bool          // asked for anew since it is
}

func (b *backlog) init(mu *sync.Mutex) {
	b.work = sync.NewCond(mu)
	b.drop()
}

// drop forgets what is to be done. Those who wait for it are told that it is over.
func (b *backlog) drop() {
	for _, l := range b.looks {
		close(l.done)
	}
	b.looks, b.failed = make(map[string]*look), make(map[string]error)
	b.urgent, b.queue = nil, nil
}

// add has the container inspected after now.
func (b *backlog) add(id string) {
	if l := b.looks[id]; l != nil {
		l.again = l.busy
		return
	}
	b.looks[id] = &look{done: make(chan struct{}), since: time.Now()}
	b.queue = append(b.queue, id)
	b.work.Signal()
}

// hurry puts a look before those that no request waits for.
func (b *backlog) hurry(id string, l *look) {
	if !l.urgent {
		l.urgent = true
		b.urgent = append(b.urgent, id)
		b.work.Signal()
	}
}

// take waits for a container to inspect. It returns false when ctx has ended.
func (b *backlog) take(ctx context.Context) (string, *look, bool) {
	stop := context.AfterFunc(ctx, func() {
		b.work.L.Lock()
		defer b.work.L.Unlock()
		b.work.Broadcast()
	})
	defer stop()
	for ctx.Err() == nil {
		from := &b.urgent
		if len(b.urgent) == 0 {
			from = &b.queue
		}
		if len(*from) == 0 {
			b.work.Wait()
			continue
		}
		id := (*from)[0]
		*from = (*from)[1:]
		if l := b.looks[id]; l != nil && !l.busy {
			l.busy = true
			return id, l, true
		}
	}
	return "", nil, false
}

// finish ends a look that was taken, or has the container inspected once more if that was
// asked for meanwhile.
func (b *backlog) finish(id string, l *look, err error) {
	if b.looks[id] != l {
		return // dropped
	}
	if err != nil {
		b.failed[id] = err
	} else {
		delete(b.failed, id)
	}
	if !l.again {
		delete(b.looks, id)
		close(l.done)
		return
	}
	l.busy, l.again, l.urgent = false, false, false
	b.queue = append(b.queue, id)
	b.hurry(id, l) // it is stale already
}
