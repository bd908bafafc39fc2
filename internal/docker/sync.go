package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"golang.org/x/sync/errgroup"

	"taskmeta/internal/ecs"
)

// follow keeps the index current for as long as the daemon lets it. It returns why it
// could not go on, and whether it came as far as to follow its events.
func (x *Index) follow(ctx context.Context) (followed bool, err error) {
	if err := x.renew(ctx); err != nil {
		return false, err
	}
	s, err := x.subscribe(ctx)
	if err != nil {
		return false, err
	}
	x.leaveLastWords()
	defer x.keepLastWords(s)
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, x.backlog.wake)()
	compared := make(chan struct{})
	g.Go(func() error {
		err := x.followEvents(ctx, s)
		x.compareOnce(ctx, compared)
		return err
	})
	x.startInspectors(ctx, g)
	g.Go(func() error { return x.probe(ctx) })
	g.Go(func() error { return x.compare(ctx, compared) })
	return true, g.Wait()
}

// compareOnce lets the first comparison with the daemon's list be made and learned from,
// though the stream of events has ended. So the index is right from time to time beside a
// daemon, or a proxy, that gives no events.
func (x *Index) compareOnce(ctx context.Context, compared <-chan struct{}) {
	select {
	case <-compared:
		return // before the stream ended: an ordinary loss
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, x.times.call)
	defer cancel()
	select {
	case <-compared:
	case <-ctx.Done():
		return
	}
	var pending []<-chan struct{}
	x.mu.Lock()
	for _, ins := range x.backlog.inspections {
		pending = append(pending, ins.done)
	}
	x.mu.Unlock()
	ctx, cancel = context.WithTimeout(ctx, x.times.patience)
	defer cancel()
	for _, done := range pending {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// actionDied is Podman's word for [events.ActionDie]; its API is else Docker's.
const actionDied events.Action = "died"

// subscribe opens the stream of events. The daemon sends the header of its answer a moment
// before it subscribes, so a plain stream could miss what happens in between; since 0 has
// it send once more what it remembers, which is harmless and asks for nobody's clock.
func (x *Index) subscribe(ctx context.Context) (*eventStream, error) {
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
	s := &eventStream{messages: messages, errs: errs, cancel: func() { cancel(nil) }}
	if !timer.Stop() {
		s.close()
		return nil, fmt.Errorf("subscribing to events: %w", context.Cause(ctx))
	}
	return s, nil
}

// An eventStream is the daemon's events.
type eventStream struct {
	messages <-chan events.Message
	errs     <-chan error
	cancel   func()
}

// close ends the stream and waits for its end.
func (s *eventStream) close() {
	s.cancel()
	for range s.errs { // until it is closed
	}
}

// followEvents has a container inspected whenever something happens to it. It must be
// quick: a daemon drops the events of a reader that keeps it waiting for 100 ms.
func (x *Index) followEvents(ctx context.Context, s *eventStream) error {
	for {
		select {
		case m := <-s.messages:
			x.events.Add(1)
			x.enqueue(&m)
		case err := <-s.errs:
			return fmt.Errorf("following events: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keepLastWords goes on with a stream of events after the daemon was lost by other signs. A
// daemon that ends in good order closes its API first and then ends the containers, of
// which it still tells (Docker 28 and later). Only those ends are taken down: whatever else
// happens has to be inspected. It goes on until the daemon is followed again.
func (x *Index) keepLastWords(s *eventStream) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	x.leaveLastWords = func() {
		cancel()
		<-done
	}
	go func() {
		defer close(done)
		defer s.close()
		for {
			select {
			case m := <-s.messages:
				if isEnd(&m) {
					x.mu.Lock()
					x.end(&m)
					x.mu.Unlock()
					x.gen.Add(1)
				}
			case <-s.errs:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
}

func isEnd(m *events.Message) bool {
	return m.Type == events.ContainerEventType && (m.Action == events.ActionDie || m.Action == actionDied)
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
	ends := isEnd(m)
	if (runs || ends) && m.Actor.Attributes[ecs.LabelTaskARN] != "" {
		p = urgent
	}
	x.mu.Lock()
	if ends && x.end(m) {
		ends = false // it is reported
	}
	ins := x.backlog.add(id, p)
	ins.report = ins.report || runs || ends
	x.contact = time.Now()
	x.mu.Unlock()
	x.gen.Add(1)
}

// end takes down the end of a container by its event alone, so that it is detached even if
// the daemon does not answer about it, and reports whether it could. When it subscribes, the
// daemon sends events of the past again: one that is older than the start of what runs now
// tells nothing of that. Both times are the daemon's, so that its clock need not be ours.
func (x *Index) end(m *events.Message) bool {
	e, at := x.catalogue.entries[m.Actor.ID], time.Unix(0, m.TimeNano).UTC()
	if e == nil || e.pid == 0 || m.TimeNano == 0 || !at.After(e.container.Started) {
		return false
	}
	c, ended := *e.container, *e
	c.Known, c.Finished, c.ExitCode, c.CanChangeHostNetwork = ecs.StatusStopped, at, nil, false
	of := m.Actor.Attributes
	if code, err := strconv.Atoi(cmp.Or(of["exitCode"], of["containerExitCode"])); err == nil { // Docker's and Podman's word
		c.ExitCode = &code
	}
	ended.pid, ended.container = 0, &c
	x.catalogue.put(&ended)
	if ins := x.backlog.inspections[e.id]; ins != nil {
		ins.stale = ins.begun
	}
	if x.watcher != nil {
		x.watcher.Changed(ended.summary())
	}
	return true
}

// probe asks the daemon from time to time whether it still answers, because one that hangs
// keeps the stream of events open, and at once when a call could not reach it. It also warns
// of what cannot be inspected.
func (x *Index) probe(ctx context.Context) error {
	tick := time.NewTicker(x.times.probe)
	defer tick.Stop()
	warned := 0
	for {
		select {
		case <-tick.C:
		case <-x.doubt:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := x.ping(ctx); err != nil {
			return fmt.Errorf("asking whether it answers: %w", err)
		}
		x.mu.Lock()
		x.contact = time.Now()
		failed, example := x.backlog.failing()
		x.mu.Unlock()
		if failed > warned {
			x.cfg.Logger.Warn("some containers cannot be inspected", "containers", failed, "err", example)
			warned = failed
		} else if failed == 0 {
			warned = 0
		}
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
// first time all containers are inspected, and later those that the list shows changed. It
// closes compared after the first time.
func (x *Index) compare(ctx context.Context, compared chan<- struct{}) error {
	if err := x.resync(ctx, true); err != nil {
		return err
	}
	x.connected()
	close(compared)
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
