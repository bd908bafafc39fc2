package docker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"

	"taskmeta/internal/ecs"
)

// follow keeps the index current for as long as the daemon lets it. It returns why it
// could not go on.
func (x *Index) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := x.renew(ctx); err != nil {
		return err
	}
	messages, errs, err := x.subscribe(ctx)
	if err != nil {
		return err
	}
	defer func() {
		cancel()
		for range errs { // until the stream is closed
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, x.backlog.wake)()
	g.Go(func() error { return x.followEvents(ctx, messages, errs) })
	for n := range urgentInspectors + otherInspectors {
		g.Go(func() error { return x.work(ctx, n < urgentInspectors) })
	}
	g.Go(func() error { return x.probe(ctx) })
	g.Go(func() error { return x.compare(ctx) })
	return g.Wait()
}

// actionDied is Podman's word for [events.ActionDie]; its API is else Docker's.
const actionDied events.Action = "died"

// subscribe opens the stream of events. The daemon sends the header of its answer a moment
// before it subscribes, so a plain stream could miss what happens in between; since 0 has
// it send once more what it remembers, which is harmless and asks for nobody's clock.
func (x *Index) subscribe(ctx context.Context) (<-chan events.Message, <-chan error, error) {
	args := filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)),
		filters.Arg("type", string(events.NetworkEventType)),
	)
	for _, action := range []events.Action{
		events.ActionCreate, events.ActionStart, events.ActionDie, events.ActionDestroy, events.ActionRename,
		events.ActionHealthStatus, events.ActionUpdate, events.ActionPause, events.ActionUnPause, events.ActionOOM,
		events.ActionConnect, events.ActionDisconnect, actionDied,
	} {
		args.Add("event", string(action))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(x.times.call, func() { cancel(context.DeadlineExceeded) })
	messages, errs := x.daemon.cli.Load().Events(ctx, events.ListOptions{Since: "0", Filters: args})
	if !timer.Stop() {
		<-errs
		return nil, nil, fmt.Errorf("subscribing to events: %w", context.Cause(ctx))
	}
	return messages, errs, nil
}

// followEvents has a container inspected whenever something happens to it. It must be
// quick: a daemon drops the events of a reader that keeps it waiting for 100 ms.
func (x *Index) followEvents(ctx context.Context, messages <-chan events.Message, errs <-chan error) error {
	for {
		select {
		case m := <-messages:
			x.events.Add(1)
			x.enqueue(&m)
		case err := <-errs:
			return fmt.Errorf("following events: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enqueue has the container of an event inspected after now. The attributes of an event
// have the container's labels, so that a task's is known at once.
func (x *Index) enqueue(m *events.Message) {
	id, p := m.Actor.ID, other
	if m.Type == events.NetworkEventType {
		id = m.Actor.Attributes["container"]
	}
	if len(id) < shortID {
		return
	}
	runs := m.Action == events.ActionStart
	ends := m.Action == events.ActionDie || m.Action == actionDied
	if (runs || ends) && m.Actor.Attributes[ecs.LabelTaskARN] != "" {
		p = urgent
	}
	x.mu.Lock()
	ins := x.backlog.add(id, p)
	ins.report = ins.report || runs || ends
	x.contact = time.Now()
	x.mu.Unlock()
	x.gen.Add(1)
}

// probe asks the daemon from time to time whether it still answers, because one that hangs
// keeps the stream of events open. It also has another try at what could not be inspected.
func (x *Index) probe(ctx context.Context) error {
	tick := time.NewTicker(x.times.probe)
	defer tick.Stop()
	reported := 0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := x.ping(ctx); err != nil {
			return fmt.Errorf("asking whether it answers: %w", err)
		}
		x.mu.Lock()
		x.contact = time.Now()
		failed, example := x.backlog.retry()
		x.mu.Unlock()
		if failed != reported && failed > 0 {
			x.cfg.Logger.Warn("some containers cannot be inspected", "containers", failed, "err", example)
		}
		reported = failed
	}
}

func (x *Index) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, x.times.call)
	defer cancel()
	return x.daemon.renew(ctx)
}

func (x *Index) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, x.times.call)
	defer cancel()
	_, err := x.daemon.cli.Load().Ping(ctx)
	return err
}

// compare compares the index with the daemon's list, at once and then at intervals: the
// first time all containers are inspected, and later those that the list shows changed.
func (x *Index) compare(ctx context.Context) error {
	if err := x.resync(ctx, true); err != nil {
		return err
	}
	x.connected()
	for {
		select {
		case <-time.After(x.times.resync - rand.N(x.times.resync/10)):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := x.resync(ctx, false); err != nil {
			return err
		}
		x.mu.Lock()
		x.reportAll()
		x.mu.Unlock()
	}
}

// differs reports whether the list shows the container otherwise than e has it.
func differs(e *entry, s *container.Summary) bool {
	c := e.container
	return c == nil || c.Known != status(s.State) || !slices.Contains(s.Names, "/"+c.DockerName)
}

// resync lists all containers, and has those inspected that are gone or that the list shows
// changed, or all of them.
func (x *Index) resync(ctx context.Context, all bool) error {
	seen := make(map[string]struct{})
	err := x.daemon.listAll(ctx, x.times.call, func(page []container.Summary) {
		for i := range page {
			seen[page[i].ID] = struct{}{}
		}
		x.note(page, all)
	})
	if err != nil {
		return err
	}
	x.mu.Lock()
	for id := range x.catalogue.entries {
		if _, ok := seen[id]; !ok {
			x.backlog.add(id, other)
		}
	}
	x.contact = time.Now()
	x.mu.Unlock()
	x.gen.Add(1)
	x.resyncs.Add(1)
	return nil
}

// note takes down the containers of a list that are not known yet, and has those inspected
// that it shows changed, or all of them. What is known of a container from a list is whose
// it is.
func (x *Index) note(page []container.Summary, all bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range page {
		s := &page[i]
		e := x.catalogue.entries[s.ID]
		if e == nil {
			e = newEntry(s.ID, s.Labels, container.NetworkMode(s.HostConfig.NetworkMode))
			x.catalogue.put(e)
		}
		if all || differs(e, s) {
			p := other
			if e.arn != "" && s.State == container.StateRunning {
				p = ofTask
			}
			x.backlog.add(s.ID, p)
		}
	}
	x.gen.Add(1)
}

// work inspects what is urgent, or all else, until ctx ends or the daemon is gone.
func (x *Index) work(ctx context.Context, isUrgent bool) error {
	for {
		x.mu.Lock()
		id, ins, ok := x.backlog.take(ctx, isUrgent)
		x.mu.Unlock()
		if !ok {
			return ctx.Err()
		}
		e, err := x.inspect(ctx, id)
		if client.IsErrConnectionFailed(err) || ctx.Err() != nil {
			return err
		}
		x.mu.Lock()
		x.learn(id, ins, e, err)
		x.mu.Unlock()
		x.gen.Add(1)
	}
}

func (x *Index) inspect(ctx context.Context, id string) (*entry, error) {
	info, err := x.daemon.inspect(ctx, x.times.call, id)
	if err != nil {
		return nil, err
	}
	e, err := inspected(id, info)
	if err == nil && e.pid != 0 {
		e.container.CanChangeHostNetwork = x.cfg.CanChangeHostNetwork(e.pid)
	}
	return e, err
}

// replace puts an entry in place of the one before, and warns of a task's container that
// can change the host's network and could not before.
func (x *Index) replace(e *entry) {
	before := x.catalogue.entries[e.id]
	x.catalogue.put(e)
	c := e.container
	if !c.CanChangeHostNetwork || before != nil && before.container != nil && before.container.CanChangeHostNetwork {
		return
	}
	if root := x.catalogue.root(e); e.arn != "" || root.arn != "" {
		x.cfg.Logger.Warn("a task's container has CAP_NET_ADMIN or CAP_SYS_ADMIN on the host: it can change the host's network, and cut off other tasks; start it without, or with a user namespace of its own (userns-remap)", "container", c.ID, "name", c.DockerName)
	}
}

// search asks the daemon directly for the containers of a binding that the index does not
// know, because they may have been made a moment ago. They are noted together: a request
// that comes in between must not take some of them for all.
func (x *Index) search(ctx context.Context, b *ecs.Binding) error {
	var found []container.Summary
	var errs []error
	for _, ask := range []struct{ filter, value string }{
		{"id", b.Owner()},
		{"label", ecs.LabelTaskARN + "=" + b.TaskARN},
	} {
		if ask.filter == "label" && b.TaskARN == "" || len(ask.value) < shortID {
			continue
		}
		page, err := x.daemon.list(ctx, x.times.call, 0, filters.NewArgs(filters.Arg(ask.filter, ask.value)))
		if err != nil {
			errs = append(errs, err)
		}
		found = append(found, page...)
	}
	x.note(found, true)
	return errors.Join(errs...)
}
