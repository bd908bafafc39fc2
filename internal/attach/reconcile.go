package attach

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"taskmeta/internal/backoff"
	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
)

const (
	// atOnce is how many containers are attached or detached at the same time, and checksAtOnce
	// how many that are attached already are checked beside them: a start with many must not
	// hold up one that is not.
	atOnce       = 8
	checksAtOnce = 2
	// fileInterval is between two looks whether the bindings file is still the same.
	fileInterval = time.Second
	// lockTime bounds the wait for those who attach by hand. Each has a minute.
	lockTime = 15 * time.Second
	// keeperTime is what the keeper of the endpoint has to put an attachment right, as it does
	// with what is on the bridge's side, before it is attached anew.
	keeperTime = 2 * time.Second
)

// Run attaches every container that starts with the label of a task and owns its network
// namespace, and detaches every one that ends, until ctx does. The index tells of them: of
// those that run at first, whenever the daemon comes back, and every few minutes, because
// interfaces may be removed by hand. Bindings that are lost are recorded again.
func (a *Attacher) Run(ctx context.Context, index *docker.Index) error {
	r := newReconciler(a, index.Recheck)
	defer r.workers.Wait()
	if err := a.restoreMissing(ctx); err != nil { // before the first container is attached
		a.Logger.Error(cannotSweep, "err", err)
	}
	stop := index.Watch(docker.Watcher{
		Changed: func(c docker.Container) { r.changed(ctx, c) },
		Listed:  r.requestSweep,
		Lost: func(err error) {
			a.Logger.Warn("containers that start now are attached when the Docker daemon is back", "err", err)
		},
	})
	defer stop()
	r.sweeps(ctx)
	return nil
}

func newReconciler(a *Attacher, recheck func(id string)) *reconciler {
	return &reconciler{
		attacher: a, recheck: recheck,
		slots: make(chan struct{}, atOnce), checks: make(chan struct{}, checksAtOnce), listed: make(chan struct{}, 1),
		jobs: make(map[string]*job), doubtful: make(map[string]bool),
	}
}

// A reconciler attaches and detaches containers, one thing to each at a time.
//
// A container is idle, or it has a job and one goroutine that works on it: it waits for a
// slot, does what it was last told, and begins again if it was told something meanwhile.
// After a failure it pauses, the longer the more have failed, until it is told something.
// Then it does that. If that is nothing, it tries to detach again; but to attach, it has the
// container inspected anew, because a process ID may be another's by now. When nothing is
// left the job is removed.
type reconciler struct {
	attacher *Attacher
	recheck  func(id string) // has the container inspected, and changed told of it
	slots    chan struct{}
	checks   chan struct{}
	listed   chan struct{} // holds a token if a sweep is to come
	workers  sync.WaitGroup

	mu   sync.Mutex      // for what follows
	jobs map[string]*job // by container ID
	// doubtful are the containers whose plugins find something wrong right after their ADD:
	// attaching anew does not help.
	doubtful map[string]bool
}

// A job is what was told of a container since its goroutine began what it does now.
type job struct {
	news chan struct{} // holds a token if something was told
	work
}

// A work is what is to be done to a container.
type work struct {
	told *docker.Container // nil if nothing was
	left []ecs.Attachment  // what a sweep found of it
}

func (w work) none() bool { return w.told == nil && len(w.left) == 0 }

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
		j = &job{news: make(chan struct{}, 1)}
		r.jobs[id] = j
		r.workers.Go(func() { r.work(ctx, id, j) })
	}
	tell(j)
	select {
	case j.news <- struct{}{}:
	default: // what was told before has not been done either
	}
}

// work does a job until nothing is left to do.
func (r *reconciler) work(ctx context.Context, id string, j *job) {
	for {
		r.slots <- struct{}{}
		now := r.take(j)
		already, err := r.reconcile(ctx, now)
		<-r.slots
		if already {
			err = r.verify(ctx, *now.told, j)
		}
		if err != nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-j.news:
			case <-time.After(r.failed(id, now, err)):
			}
		}
		if r.over(ctx, id, j, now, err != nil) {
			return
		}
	}
}

// take returns what is to be done now.
func (r *reconciler) take(j *job) work {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := j.work
	j.work = work{}
	select {
	case <-j.news:
	default:
	}
	return now
}

// failed logs a failure whose reason is new, and returns the pause after it.
func (r *reconciler) failed(id string, w work, err error) time.Duration {
	c := docker.Container{ID: id}
	says := "detaching failed; trying again, with pauses that grow"
	if w.told != nil && w.told.Pid != 0 {
		c, says = *w.told, "attaching failed; trying again, with pauses that grow"
	}
	pause, news := r.attacher.progress.failed(c, err)
	if news {
		r.attacher.Logger.Error(says, "container", id, "name", c.Name, "longest", backoff.Max, "err", err)
	}
	return pause
}

// over ends a job with which nothing is left to do, or says what is to be tried again.
func (r *reconciler) over(ctx context.Context, id string, j *job, done work, failed bool) bool {
	r.mu.Lock()
	attaching := failed && done.told != nil && done.told.Pid != 0 && j.told == nil
	if failed {
		for _, key := range done.left {
			j.leave(key)
		}
	}
	if failed && j.told == nil && !attaching {
		j.told = done.told
	}
	over := j.none() || ctx.Err() != nil
	if over {
		delete(r.jobs, id)
	}
	r.mu.Unlock()
	if attaching {
		r.recheck(id)
	}
	return over
}

func (w *work) leave(key ecs.Attachment) {
	if !slices.Contains(w.left, key) {
		w.left = append(w.left, key)
	}
}

// reconcile frees what is left of a container, and attaches or detaches it, as it should be
// now. It reports whether it is attached already.
func (r *reconciler) reconcile(ctx context.Context, now work) (already bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, lockTime) // or whoever holds it held up all the others
	defer cancel()
	free, err := r.attacher.lock(waiting, shared)
	if err != nil {
		return false, err
	}
	defer free()
	for _, key := range now.left {
		if err := r.collect(ctx, key); err != nil {
			return false, err
		}
	}
	switch c := now.told; {
	case c == nil:
		return false, nil
	case c.Pid == 0:
		return false, r.detach(ctx, c.ID)
	case c.HostNetwork:
		if r.attacher.progress.hopeless(*c, ErrHostNetwork) {
			r.attacher.Logger.Warn("a container with a task's label uses the host's network and cannot have an address of its own; start it with another --network", "container", c.ID, "name", c.Name)
		}
		return false, nil
	default:
		return r.attach(ctx, *c, r.attacher.add)
	}
}

// collect frees what a sweep found of a container. It looks once more what it is: the
// container may have been attached anew since, and then it stays. Nobody else attaches it at
// this moment, since its job and the lock are ours.
func (r *reconciler) collect(ctx context.Context, key ecs.Attachment) error {
	left, err := r.attacher.remains(key)
	if err != nil || left.none() {
		return err
	}
	if left.bound != nil && !left.cut {
		gone, err := r.attacher.gone(func(b *ecs.Binding) bool { return b.Attachment == key })
		if err != nil || len(gone) == 0 {
			return err
		}
	}
	freed, err := r.attacher.remove(ctx, key, left)
	if err != nil {
		return err
	}
	r.attacher.Logger.Info("detached a container that is gone, or what was left of it", "container", key.Container, "addr", freed.Addrs)
	r.recheck(key.Container) // it may run all the same
	return nil
}

// attach attaches a container by add, or by renew.
func (r *reconciler) attach(ctx context.Context, c docker.Container, how func(context.Context, docker.Container) (Attached, error)) (already bool, err error) {
	start, log := time.Now(), r.attacher.Logger
	if err := r.attacher.restoreMissing(ctx); err != nil {
		return false, err
	}
	done, err := how(ctx, c)
	if err != nil && ended(c) {
		log.Debug("not attached: it ended meanwhile", "container", c.ID, "name", c.Name, "err", err)
		r.attacher.progress.succeeded(c.ID)
		return false, nil // its end is an event of its own
	}
	if err != nil {
		return false, err
	}
	failures := r.attacher.progress.succeeded(c.ID)
	if !done.Already {
		log.Info("attached", "container", c.ID, "name", c.Name, "addr", done.Binding.Addrs, "task", done.Binding.TaskARN, "took", time.Since(start), "failures", failures)
	}
	return done.Already, nil
}

// verify has the plugins check a container that is attached already, and attaches it anew if
// something is missing that nobody puts right. It ends when the job has news.
func (r *reconciler) verify(ctx context.Context, c docker.Container, j *job) error {
	cause := r.check(ctx, c)
	if cause == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-j.news:
		return nil
	case <-time.After(keeperTime):
	}
	if cause = r.check(ctx, c); cause == nil {
		return nil
	}
	r.attacher.Logger.Warn("an attachment is not whole; attaching the container anew", "container", c.ID, "name", c.Name, "err", cause)
	r.slots <- struct{}{}
	defer func() { <-r.slots }()
	free, err := r.attacher.lock(ctx, shared)
	if err != nil {
		return err
	}
	defer free()
	if _, err := r.attach(ctx, c, r.attacher.renew); err != nil || ended(c) {
		return err
	}
	if err := r.attacher.check(ctx, c); err != nil {
		r.attacher.Logger.Warn("the plugins' CHECK fails right after their ADD; the container is not attached anew for it again", "container", c.ID, "name", c.Name, "err", err)
		r.mu.Lock()
		r.doubtful[c.ID] = true
		r.mu.Unlock()
	}
	return nil
}

// check is what the plugins find missing of an attachment.
func (r *reconciler) check(ctx context.Context, c docker.Container) error {
	r.mu.Lock()
	doubtful := r.doubtful[c.ID]
	r.mu.Unlock()
	if doubtful {
		return nil
	}
	r.checks <- struct{}{}
	defer func() { <-r.checks }()
	free, err := r.attacher.lock(ctx, shared)
	if err != nil {
		return nil
	}
	defer free()
	if err := r.attacher.check(ctx, c); err != nil && !ended(c) {
		return err
	}
	return nil
}

// detach detaches a container that has ended. It needs no more than the ID. Most containers
// that end were never attached.
func (r *reconciler) detach(ctx context.Context, id string) error {
	start := time.Now()
	r.mu.Lock()
	delete(r.doubtful, id)
	r.mu.Unlock()
	key := r.attacher.key(id)
	left, err := r.attacher.remains(key)
	if err != nil {
		return err
	}
	if !left.none() {
		freed, err := r.attacher.remove(ctx, key, left)
		if err != nil {
			return err
		}
		r.attacher.Logger.Info("detached", "container", id, "addr", freed.Addrs, "took", time.Since(start))
	}
	r.attacher.progress.succeeded(id)
	return nil
}

const cannotSweep = "what is left of containers that are gone cannot be found; trying again, with pauses that grow"

// sweeps sweeps when the containers were compared with the daemon's list, and when the
// bindings file is gone or another, until ctx ends.
func (r *reconciler) sweeps(ctx context.Context) {
	tick := time.NewTicker(fileInterval)
	defer tick.Stop()
	var retry <-chan time.Time
	var pause backoff.Backoff
	seen, said, replaced := r.attacher.file(), failing{}, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.listed:
		case <-retry:
		case <-tick.C:
			now := r.attacher.file()
			if now == seen && (now != none || !r.attacher.lostAll()) {
				continue
			}
			seen, replaced = now, true
		}
		retry = nil
		err := r.sweep(ctx)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			pause.Reset()
			said = failing{}
			if replaced {
				r.recheckBound()
				replaced = false
			}
			seen = r.attacher.file()
		default:
			if said.say(err) {
				r.attacher.Logger.Error(cannotSweep, "longest", backoff.Max, "err", err)
			}
			retry = time.After(pause.Next())
		}
	}
}

// none is the inode of a bindings file that is missing.
const none = 0

// file is the inode of the bindings file.
func (a *Attacher) file() uint64 {
	var st syscall.Stat_t
	if err := syscall.Stat(a.DB, &st); err != nil {
		return none
	}
	return st.Ino
}

// lostAll reports whether containers are attached, now that the bindings file is missing.
func (a *Attacher) lostAll() bool {
	veths, err := a.veths()
	return err == nil && len(veths) > 0
}

// recheckBound has each container that has a binding inspected, to be attached anew where the
// binding of another file is not what the container has.
func (r *reconciler) recheckBound() {
	s, err := r.attacher.bindings.Snapshot()
	if err != nil {
		return // the next job says so
	}
	for _, b := range s.All() {
		if b.Network == r.attacher.network.Name {
			r.recheck(b.Container)
		}
	}
}

// sweep records bindings again that were lost, and finds what is left of containers that are
// gone, and of attempts that were cut short: bindings whose network namespace is gone, veths
// without a binding, results and marks with neither. Each is freed after what is being done
// to its container.
func (r *reconciler) sweep(ctx context.Context) error {
	a := r.attacher
	if err := a.restore(ctx); err != nil {
		return err
	}
	gone, err := a.gone(func(b *ecs.Binding) bool { return b.Network == a.network.Name || b.IsProbe() })
	for _, b := range gone {
		r.leave(ctx, b.Attachment)
	}
	unbound, e := a.unbound()
	err = errors.Join(err, e)
	for key := range unbound {
		if key.Network == a.network.Name {
			r.leave(ctx, key)
		}
	}
	noted, e := a.noted()
	err = errors.Join(err, e)
	for _, key := range noted {
		left, e := a.remains(key)
		if e == nil && (left.cut || left.bound == nil) {
			r.leave(ctx, key)
		}
		err = errors.Join(err, e)
	}
	return err
}

func (r *reconciler) leave(ctx context.Context, key ecs.Attachment) {
	r.enqueue(ctx, key.Container, func(j *job) { j.leave(key) })
}

func (r *reconciler) requestSweep() {
	select {
	case r.listed <- struct{}{}:
	default: // one is to come
	}
}
