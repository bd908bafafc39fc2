package docker

import (
	"context"
	"time"

	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
)

// The daemon answers about most containers within milliseconds, and may hold up the answer
// about one for as long as it holds that one's lock. So only inspections that are not slow
// count against those that are made at once.
const (
	soonInspectors  = 32 // for what is urgent or awaited
	laterInspectors = 8
	// slowAfter is how long an inspector waits for an answer before it turns to another
	// container.
	slowAfter = 100 * time.Millisecond
	// How many slow ones there may be, since each holds a connection to the daemon. With
	// that many an inspector waits for one to end, at most times.call.
	maxSlowSoon, maxSlowLater = 256, 128
)

// inspectors make the inspections of the backlog for as long as the daemon is followed.
type inspectors struct {
	x     *Index
	group *errgroup.Group
	soon  bool
	slow  chan struct{} // holds a token for each slow inspection
}

// startInspectors has the backlog worked off until ctx ends.
func (x *Index) startInspectors(ctx context.Context, g *errgroup.Group) {
	for _, is := range []struct {
		n, maxSlow int
		soon       bool
	}{{soonInspectors, maxSlowSoon, true}, {laterInspectors, maxSlowLater, false}} {
		all := &inspectors{x: x, group: g, soon: is.soon, slow: make(chan struct{}, is.maxSlow)}
		for range is.n {
			g.Go(func() error { return all.work(ctx) })
		}
	}
}

func (is *inspectors) work(ctx context.Context) error {
	x := is.x
	for {
		x.mu.Lock()
		id, ins, attempt, ok := x.backlog.take(ctx, is.soon)
		x.mu.Unlock()
		if !ok {
			return ctx.Err()
		}
		answered := make(chan struct{})
		is.group.Go(func() error {
			defer close(answered)
			return x.attempt(ctx, id, ins, attempt)
		})
		if !is.await(answered, ins) {
			x.mu.Lock()
			x.backlog.isSlow(id, ins, attempt)
			x.mu.Unlock()
		}
	}
}

// await waits for an answer, and reports false if it is slow. The more are slow the sooner
// one is, so that a hundred that hang do not keep those behind them for a second; but the
// more attempts of one container are, the later, since each further one is a connection.
func (is *inspectors) await(answered <-chan struct{}, ins *inspection) bool {
	wait := slowAfter / time.Duration(1+len(is.slow)/16)
	is.x.mu.Lock()
	wait <<= min(ins.slow, 6)
	is.x.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-answered:
		return true
	case <-timer.C:
	}
	select {
	case <-answered:
		return true
	case is.slow <- struct{}{}:
	}
	is.group.Go(func() error {
		<-answered
		<-is.slow
		return nil
	})
	return false
}

// attempt makes one attempt of an inspection and takes down what it says. That the daemon
// cannot be reached is no container's fault: whether it is there is asked by probe.
func (x *Index) attempt(ctx context.Context, id string, ins *inspection, attempt int) error {
	e, err := x.inspect(ctx, id)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if client.IsErrConnectionFailed(err) {
		select {
		case x.doubt <- struct{}{}:
		default: // probe is to look already
		}
	}
	x.mu.Lock()
	x.learn(id, ins, attempt, e, err)
	x.mu.Unlock()
	x.gen.Add(1)
	return nil
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
