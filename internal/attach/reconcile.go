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
// slot, does what was told last, and begins again if something was told meanwhile. After a
// failure it pauses; then it does what was told meanwhile, or else has the container
// inspected anew, because what was told may be out of date: a process ID may be another's
// by now. When nothing is left the job is removed.
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
	told     *docker.Container
	leftover bool // a sweep found its binding without its network namespace
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
		err := r.reconcile(ctx, id, now)
		<-r.slots
		if err != nil && ctx.Err() == nil {
			r.attacher.Logger.Error("a container is not as it should be; trying again", "container", id, "after", retryAfter, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
		r.mu.Lock()
		if err != nil && now.told == nil {
			j.leftover = true
		}
		done := *j == job{} || ctx.Err() != nil
		if done {
			delete(r.jobs, id)
		}
		r.mu.Unlock()
		if done {
			if err != nil {
				r.recheck(id)
			}
			return
		}
	}
}

// reconcile attaches or detaches a container, as it should be now.
func (r *reconciler) reconcile(ctx context.Context, id string, now job) error {
	a := r.attacher
	if now.told != nil && now.told.Pid != 0 && now.told.HostNetwork {
		if r.warn(id) {
			a.Logger.Warn("a container with a task's label uses the host's network and cannot have an address of its own; start it with another --network", "container", id, "name", now.told.Name)
		}
		return nil
	}
	free, err := a.lock(ctx, shared)
	if err != nil {
		return err
	}
	defer free()
	switch {
	case now.told == nil:
		return r.collect(ctx, id)
	case now.told.Pid == 0:
		return r.detach(ctx, id)
	}
	return r.attach(ctx, *now.told)
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
	r.forget(id)
	bound, err := r.attacher.remove(ctx, id)
	if bound != nil && err == nil {
		r.attacher.Logger.Info("detached", "container", id, "addr", bound.Addrs, "took", time.Since(start))
	}
	return err
}

// collect frees what a container that is gone had. It looks once more: the container may
// have been attached anew since the sweep.
func (r *reconciler) collect(ctx context.Context, id string) error {
	freed, err := r.attacher.collect(ctx, func(b *ecs.Binding) bool { return r.ours(b) && b.Container == id })
	for _, b := range freed {
		r.attacher.Logger.Info("detached a container that is gone", "container", b.Container, "addr", b.Addrs)
	}
	return err
}

// sweep finds the bindings whose network namespace is gone, and has them freed.
func (r *reconciler) sweep(ctx context.Context) error {
	gone, err := r.attacher.gone(r.ours)
	for _, b := range gone {
		r.enqueue(ctx, b.Container, func(j *job) { j.leftover = true })
	}
	return err
}

func (r *reconciler) requestSweep() {
	select {
	case r.listed <- struct{}{}:
	default: // one is to come
	}
}

func (r *reconciler) ours(b *ecs.Binding) bool { return b.Network == r.attacher.network.Name }

// warn reports whether a container's host network is news.
func (r *reconciler) warn(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.warned[id]
	r.warned[id] = true
	return !old
}

func (r *reconciler) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.warned, id)
}
