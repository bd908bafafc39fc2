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
		told: make(map[string]*docker.Container), warned: make(map[string]bool),
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
		if err := r.sweep(); err != nil && ctx.Err() == nil {
			a.Logger.Error("a container is not as it should be; trying again", "after", retryAfter, "err", err)
			retry = time.After(retryAfter)
		}
	}
}

// A reconciler attaches and detaches containers, one thing to each at a time.
//
// A container is idle, or it stands in told and has one goroutine: that waits for a slot,
// does what was told last, and begins again if something was told meanwhile. After a
// failure it pauses; then it does what was told meanwhile, or else has the container
// inspected anew, because what was told may be out of date: a process ID may be another's
// by now.
type reconciler struct {
	attacher *Attacher
	recheck  func(id string) // has the container inspected, and changed told of it
	slots    chan struct{}
	listed   chan struct{} // holds a token if a sweep is to come
	workers  sync.WaitGroup

	mu     sync.Mutex                   // for what follows
	told   map[string]*docker.Container // by ID; nil if nothing was told since the work began
	warned map[string]bool              // containers whose host network has been logged
}

// changed is told of what runs and of what has ended. It does not wait.
func (r *reconciler) changed(ctx context.Context, c docker.Container) {
	if c.Pid != 0 && (c.Labels[ecs.LabelTaskARN] == "" || c.Joins != "") {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, busy := r.told[c.ID]
	r.told[c.ID] = &c
	if !busy {
		r.workers.Go(func() { r.work(ctx, c.ID) })
	}
}

// work reconciles a container until nothing is left to do.
func (r *reconciler) work(ctx context.Context, id string) {
	for {
		r.slots <- struct{}{}
		r.mu.Lock()
		c := *r.told[id]
		r.told[id] = nil
		r.mu.Unlock()
		err := r.reconcile(ctx, c)
		<-r.slots
		if err != nil && ctx.Err() == nil {
			r.attacher.Logger.Error("a container is not as it should be; trying again", "container", id, "after", retryAfter, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
		r.mu.Lock()
		done := r.told[id] == nil || ctx.Err() != nil
		if done {
			delete(r.told, id)
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
func (r *reconciler) reconcile(ctx context.Context, c docker.Container) error {
	if c.Pid != 0 && c.HostNetwork {
		r.mu.Lock()
		warned := r.warned[c.ID]
		r.warned[c.ID] = true
		r.mu.Unlock()
		if !warned {
			r.attacher.Logger.Warn("a container with a task's label uses the host's network and cannot have an address of its own; start it with another --network", "container", c.ID, "name", c.Name)
		}
		return nil
	}
	free, err := r.attacher.lock(ctx, shared)
	if err != nil {
		return err
	}
	defer free()
	if c.Pid == 0 {
		return r.detach(ctx, c.ID)
	}
	return r.attach(ctx, c)
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

// sweep has the containers inspected whose network namespace is gone, though they are
// attached: so each is detached, or attached anew, after what is being done to it.
func (r *reconciler) sweep() error {
	gone, err := r.attacher.gone(func(b *ecs.Binding) bool { return b.Network == r.attacher.network.Name })
	for _, b := range gone {
		r.recheck(b.Container)
	}
	return err
}

func (r *reconciler) requestSweep() {
	select {
	case r.listed <- struct{}{}:
	default: // one is to come
	}
}
