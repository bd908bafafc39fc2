package attach

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"taskmeta/internal/ecs"
)

const (
	// atOnce is how many containers are attached or detached at the same time.
	atOnce = 8
	// retryAfter is the pause after a failure.
	retryAfter = 5 * time.Second
	// alignEvery is how often all containers are looked at, though no event told of them: a
	// daemon drops events that it cannot send, and interfaces may be removed by hand.
	alignEvery = 5 * time.Minute
)

// Run attaches every container that starts with the label of a task and owns its network
// namespace, and detaches every one that ends, until ctx does. At first, whenever the
// daemon comes back, and every few minutes it brings attachments and containers into line.
func (a *Attacher) Run(ctx context.Context) error {
	l := &line{attacher: a, slots: make(chan struct{}, atOnce), touched: make(map[string]bool), told: make(map[string]bool)}
	defer l.workers.Wait()
	for {
		err := l.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		a.Logger.Warn("containers that start now are attached when the Docker daemon is back", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryAfter):
		}
	}
}

// A line brings containers into line with their attachments, each by one goroutine.
type line struct {
	attacher *Attacher
	slots    chan struct{}
	workers  sync.WaitGroup

	mu      sync.Mutex
	touched map[string]bool // containers at work; true if touched again meanwhile
	told    map[string]bool // containers whose host network has been logged
}

// follow listens to the daemon until it goes away. What it remembers is sent once more, or
// an event between its answer and its subscription would be missed.
func (l *line) follow(ctx context.Context) error {
	stream, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, failed := l.attacher.docker.Events(stream, events.ListOptions{Since: "0", Filters: filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("event", string(events.ActionStart)),
		filters.Arg("event", string(events.ActionDie)),
		filters.Arg("event", "died"), // Podman's word for it, whose API is else Docker's
	)})
	if err := l.alignAll(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(l.attacher.alignEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := l.alignAll(ctx); err != nil {
				return err
			}
		case m := <-messages:
			l.touch(ctx, m.Actor.ID)
		case err := <-failed:
			return l.attacher.unavailable(err)
		}
	}
}

// alignAll frees what containers that are gone had, and touches those that run.
func (l *line) alignAll(ctx context.Context) error {
	running, err := l.attacher.docker.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", ecs.LabelTaskARN))})
	if err != nil {
		return l.attacher.unavailable(err)
	}
	for _, c := range running {
		l.touch(ctx, c.ID)
	}
	free, err := l.attacher.lock(ctx, together)
	if err != nil {
		return err
	}
	defer free()
	freed, err := l.attacher.collect(ctx, func(b *ecs.Binding) bool { return b.Network == l.attacher.network.Name })
	for _, b := range freed {
		l.attacher.Logger.Info("detached a container that is gone", "container", b.Container, "addr", b.Addrs)
	}
	return err
}

// touch has the container looked at, after what is being done to it.
func (l *line) touch(ctx context.Context, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, busy := l.touched[id]; busy {
		l.touched[id] = true
		return
	}
	l.touched[id] = false
	l.workers.Go(func() { l.work(ctx, id) })
}

// work aligns one container until nothing is left to do.
func (l *line) work(ctx context.Context, id string) {
	for {
		l.slots <- struct{}{}
		err := l.align(ctx, id)
		<-l.slots
		if err != nil && ctx.Err() == nil {
			l.attacher.Logger.Error("a container is not as it should be; trying again", "container", id, "after", retryAfter, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
		}
		l.mu.Lock()
		if again := l.touched[id] || err != nil; !again || ctx.Err() != nil {
			delete(l.touched, id)
			l.mu.Unlock()
			return
		}
		l.touched[id] = false
		l.mu.Unlock()
	}
}

// align attaches or detaches a container, as it should be now.
func (l *line) align(ctx context.Context, id string) error {
	a := l.attacher
	c, err := a.inspect(ctx, id)
	gone := errors.Is(err, ErrNoContainer) || err == nil && c.pid == 0
	switch {
	case gone:
		l.forget(id)
	case err != nil:
		return err
	case c.Labels[ecs.LabelTaskARN] == "" || c.mode.IsContainer():
		return nil
	case c.mode.IsHost():
		if l.tell(id) {
			a.Logger.Warn("a container with a task's label uses the host's network and cannot have an address of its own; start it with another --network", "container", id, "name", c.Name)
		}
		return nil
	}
	free, err := a.lock(ctx, together)
	if err != nil {
		return err
	}
	defer free()
	start := time.Now()
	if gone {
		bound, err := a.remove(ctx, id)
		if bound != nil && err == nil {
			a.Logger.Info("detached", "container", id, "addr", bound.Addrs, "took", time.Since(start))
		}
		return err
	}
	done, err := a.add(ctx, c)
	if err != nil && c.ended() {
		a.Logger.Debug("not attached: it ended meanwhile", "container", id, "name", c.Name, "err", err)
		return nil // its end is an event of its own
	}
	if err == nil && !done.Already {
		a.Logger.Info("attached", "container", id, "name", c.Name, "addr", done.Binding.Addrs, "task", done.Binding.TaskARN, "took", time.Since(start))
	}
	return err
}

// tell reports whether a container's host network is news.
func (l *line) tell(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.told[id]
	l.told[id] = true
	return !old
}

func (l *line) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.told, id)
}
