package attach

import (
	"context"
	"sync"
	"time"

	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
)

const (
	// atOnce is how many containers are attached or detached at the same time.
	atOnce = 8
	// retryAfter is the pause after a failure.
	retryAfter = 5 * time.Second
)

// Run attaches every container that starts with the label of a task and owns its network
// namespace, and detaches every one that ends, until ctx does. The index tells of them: of
// those that run at first, whenever the daemon comes back, and every few minutes, because
// interfaces may be removed by hand.
func (a *Attacher) Run(ctx context.Context, index *docker.Index) error {
	r := &reconciler{
		attacher: a, recheck: index.Recheck,
		slots: make(chan struct{}, atOnce), listed: make(chan struct{}, 1),
		jobs: make(map[string]*job), warned: make(map[string]bool),
	}
	defer r.workers.Wait()
	stop := index.Watch(docker.Watcher{
		Changed: func(c docker.Container) { r.changed(ctx, c) },
		Listed:  r.requestSweep,
		Lost: func(err error) {
			a.Logger.Warn("containers that start now are attached when the Docker daemon is back", "err", err)
		},
	})
	defer stop()
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.listed:
		case <-retry:
		}
		retry = nil
		if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
			a.Logger.Error("a container is not as it should be; trying again", "after", retryAfter, "err", err)
			retry = time.After(retryAfter)
		}
	}
}

// A reconciler attaches and detaches containers, one thing to each at a time.
//
// A container is idle, or it has a job and one goroutine that works on it: it waits for a
// slot, does what it was last told, and begins again if it was told something meanwhile.
// After a failure it pauses. Then it does what it was told meanwhile. If that is nothing, it
// tries to detach again; but to attach, it has the container inspected anew, because a
// process ID may be another's by now. When nothing is left the job is removed.
type reconciler struct {
	attacher *Attacher
	recheck  func(id string) // has the container inspected, and changed told of it
	slots    chan struct{}
	listed   chan struct{} // holds a token if a sweep is to come
	workers  sync.WaitGroup

	mu     sync.Mutex      // for what follows
	jobs   map[string]*job // by container ID
	warned map[string]bool // containers whose host network has been logged
}

// A job is what was told of a container since its goroutine began what it does now.
type job struct {
	told *docker.Container // nil if nothing was
	left *ecs.Binding      // what a sweep found: a binding without its network namespace
}

// changed is told of what runs and of what has ended. It does not wait.
func (r *reconciler) changed(ctx context.Context, c docker.Container) {
	if c.Pid != 0 && (c.Labels[ecs.LabelTaskARN] == "" || c.Joins != "") {
		return
	}
	r.enqueue(ctx, c.ID, func(j *job) { j.told = &c })
}

func (r *reconciler) enqueue(ctx context.Context, id string, tell func(*job)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j := r.jobs[id]
	if j == nil {
		j = &job{}
		r.jobs[id] = j
		r.workers.Go(func() { r.work(ctx, id, j) })
	}
	tell(j)
}

// work does a job until nothing is left to do.
func (r *reconciler) work(ctx context.Context, id string, j *job) {
	for {
		r.slots <- struct{}{}
		r.mu.Lock()
		now := *j
		*j = job{}
		r.mu.Unlock()
		err := r.reconcile(ctx, now)
		<-r.slots
		if err != nil && ctx.Err() == nil {
			r.attacher.Logger.Error("a container is not as it should be; trying again", "container", id, "after", retryAfter, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
		if r.over(ctx, id, j, now, err != nil) {
			return
		}
	}
}

// over ends a job with which nothing is left to do, or says what is to be tried again.
func (r *reconciler) over(ctx context.Context, id string, j *job, done job, failed bool) bool {
	r.mu.Lock()
	attaching := failed && done.told != nil && done.told.Pid != 0 && j.told == nil
	if failed && j.left == nil {
		j.left = done.left
	}
	if failed && j.told == nil && !attaching {
		j.told = done.told
	}
	over := *j == job{} || ctx.Err() != nil
	if over {
		delete(r.jobs, id)
	}
	r.mu.Unlock()
	if attaching {
		r.recheck(id)
	}
	return over
}

// reconcile frees what is left of a container, and attaches or detaches it, as it should be
// now.
func (r *reconciler) reconcile(ctx context.Context, now job) error {
	free, err := r.attacher.lock(ctx, shared)
	if err != nil {
		return err
	}
	defer free()
	if now.left != nil {
		if err := r.collect(ctx, now.left.Attachment); err != nil {
			return err
		}
	}
	switch c := now.told; {
	case c == nil:
		return nil
	case c.Pid == 0:
		return r.detach(ctx, c.ID)
	case c.HostNetwork:
		r.warn(c)
		return nil
	default:
		return r.attach(ctx, *c)
	}
}

// collect frees a binding. It looks once more whether its namespace is gone: the container
// may have been attached anew since the sweep.
func (r *reconciler) collect(ctx context.Context, key ecs.Attachment) error {
	gone, err := r.attacher.gone(func(b *ecs.Binding) bool { return b.Attachment == key })
	for _, b := range gone {
		if err := r.attacher.del(ctx, b.Attachment, ""); err != nil {
			return err
		}
		r.attacher.Logger.Info("detached a container that is gone", "container", b.Container, "addr", b.Addrs)
	}
	return err
}

// warn tells once of a task's container on the host's network.
func (r *reconciler) warn(c *docker.Container) {
	r.mu.Lock()
	warned := r.warned[c.ID]
	r.warned[c.ID] = true
	r.mu.Unlock()
	if !warned {
		r.attacher.Logger.Warn("a container with a task's label uses the host's network and cannot have an address of its own; start it with another --network", "container", c.ID, "name", c.Name)
	}
}

func (r *reconciler) attach(ctx context.Context, c docker.Container) error {
	start, log := time.Now(), r.attacher.Logger
	done, err := r.attacher.add(ctx, c)
	if err != nil && ended(c) {
		log.Debug("not attached: it ended meanwhile", "container", c.ID, "name", c.Name, "err", err)
		return nil // its end is an event of its own
	}
	if err == nil && !done.Already {
		log.Info("attached", "container", c.ID, "name", c.Name, "addr", done.Binding.Addrs, "task", done.Binding.TaskARN, "took", time.Since(start))
	}
	return err
}

func (r *reconciler) detach(ctx context.Context, id string) error {
	start := time.Now()
	r.mu.Lock()
	delete(r.warned, id)
	r.mu.Unlock()
	bound, err := r.attacher.remove(ctx, id)
	if bound != nil && err == nil {
		r.attacher.Logger.Info("detached", "container", id, "addr", bound.Addrs, "took", time.Since(start))
	}
	return err
}

// sweep finds the bindings whose network namespace is gone, and has each freed after what is
// being done to its container.
func (r *reconciler) sweep(ctx context.Context) error {
	gone, err := r.attacher.gone(func(b *ecs.Binding) bool { return b.Network == r.attacher.network.Name || b.IsProbe() })
	for _, b := range gone {
		r.enqueue(ctx, b.Container, func(j *job) { j.left = b })
	}
	return err
}

func (r *reconciler) requestSweep() {
	select {
	case r.listed <- struct{}{}:
	default: // one is to come
	}
}
