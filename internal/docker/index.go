// Package docker keeps an index of a Docker daemon's containers in memory, current by the
// daemon's events, and finds in it the task of a binding and the statistics of its
// containers.
package docker

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"taskmeta/internal/backoff"
	"taskmeta/internal/ecs"
	"taskmeta/internal/weakmap"
)

// Config is what an [Index] needs. Its functions are called at once from many goroutines.
type Config struct {
	// Client asks the daemon. The index closes it at the end of [Index.Run].
	Client *Client
	// Addresses returns the addresses in the network namespace of a process.
	Addresses func(pid int) ([]netip.Addr, error)
	// Counters returns the counters of the interfaces in the network namespace of a
	// process, by name and without loopback.
	Counters func(pid int) (map[string]ecs.Counters, error)
	// CanChangeHostNetwork reports whether a process, and so its container, is
	// [ecs.Container.CanChangeHostNetwork].
	CanChangeHostNetwork func(pid int) bool
	Logger               *slog.Logger
}

// times are the index's bounds on waiting.
type times struct {
	call     time.Duration // for an answer of the daemon's
	patience time.Duration // for what a request waits for to be inspected
	probe    time.Duration // between two questions whether the daemon still answers
	resync   time.Duration // between two comparisons with the daemon's list
	addrs    time.Duration // for which a namespace's addresses are taken as known
	unread   time.Duration // for which it is taken as known that they cannot be read
	search   time.Duration // between two searches for the same unknown task

	// The longest pauses before jitter: between attempts to reach a daemon that is gone, and
	// between connections that break. The latter cost an inspection of everything.
	reach, broken time.Duration

	sample  time.Duration // for a container's statistics
	fresh   time.Duration // for which a sample answers questions
	silence time.Duration // after which a stream of statistics is opened anew; Docker samples once a second
	idle    time.Duration // for which statistics flow on without a question
}

var defaultTimes = times{
	call:     5 * time.Second,
	patience: 2 * time.Second,
	probe:    3 * time.Second,
	resync:   5 * time.Minute,
	addrs:    5 * time.Second,
	unread:   500 * time.Millisecond,
	search:   time.Second,
	reach:    3 * time.Second,
	broken:   3 * time.Second,
	sample:   2500 * time.Millisecond,
	fresh:    2 * time.Second,
	silence:  5 * time.Second,
	idle:     time.Minute,
}

// reachSocket is times.reach for a unix socket, to which an attempt takes microseconds:
// containers that a daemon starts with itself wait for their attachment until it is reached.
const reachSocket = 200 * time.Millisecond

// An Index knows the daemon's containers. It may be used by many goroutines at once, and
// answers while [Index.Run] runs.
type Index struct {
	cfg    Config
	daemon *Client
	times  times

	// gen changes with all that may change a task.
	gen atomic.Uint64
	// lost is when the index was last known to be current, nil while it is.
	lost atomic.Pointer[time.Time]
	// tried is closed once the first attempt to list the containers is over.
	tried     chan struct{}
	triedOnce sync.Once

	// doubt has a token when a call could not reach the daemon.
	doubt chan struct{}
	// leaveLastWords ends keepLastWords. Run alone uses it.
	leaveLastWords func()

	events, resyncs atomic.Uint64

	views   *weakmap.Map[ecs.Binding, view]
	streams streams

	mu        sync.Mutex // for what follows
	catalogue catalogue
	backlog   backlog
	watcher   *Watcher  // nil if there is none
	since     time.Time // of the present state, connected or not
	contact   time.Time // when the daemon answered last
	err       error     // why the daemon is gone
	warned    time.Time // when that was logged
}

// New makes an index of the client's daemon. Nothing is asked of it before Run.
func New(cfg Config) *Index {
	now := time.Now()
	x := &Index{
		cfg: cfg, daemon: cfg.Client, times: defaultTimes,
		tried: make(chan struct{}), doubt: make(chan struct{}, 1), leaveLastWords: func() {},
		since: now, contact: now,
		catalogue: newCatalogue(),
		views:     weakmap.New[ecs.Binding](newView),
	}
	if strings.HasPrefix(x.daemon.Host(), "unix://") {
		x.times.reach = reachSocket
	}
	x.backlog.init(&x.mu)
	x.lost.Store(&now)
	return x
}

// Run keeps the index current until ctx ends, and waits for all that it has started. A
// daemon that cannot be reached is tried again and again.
func (x *Index) Run(ctx context.Context) error {
	x.streams.open(ctx)
	defer x.streams.end()
	defer func() { x.leaveLastWords() }()
	gone, breaks := backoff.Backoff{Max: x.times.reach}, backoff.Backoff{Max: x.times.broken}
	for {
		began := time.Now()
		followed, err := x.follow(ctx)
		if ctx.Err() != nil {
			return x.daemon.cli.Load().Close()
		}
		x.disconnected(err)
		pause := &gone
		if followed {
			gone.Reset()
			pause = &breaks
			if time.Since(began) > 2*x.times.broken {
				breaks.Reset()
			}
		}
		select {
		case <-time.After(pause.Next()):
		case <-ctx.Done():
		}
	}
}

// connected marks the index as current, and tells the watcher what it has.
func (x *Index) connected() {
	x.mu.Lock()
	x.since, x.err = time.Now(), nil
	known := len(x.catalogue.entries)
	x.lost.Store(nil)
	x.reportAll()
	x.mu.Unlock()
	x.triedOnce.Do(func() { close(x.tried) })
	x.cfg.Logger.Info("the Docker daemon is connected", "host", x.daemon.Host(), "containers", known)
}

// warnAgain is between two lines of the log about one loss of the daemon.
const warnAgain = 10 * time.Second

// disconnected marks the index as only what was known when the daemon answered last.
func (x *Index) disconnected(err error) {
	err = x.daemon.explain(err)
	x.mu.Lock()
	first := x.err == nil
	// Another cause than before is worth a line, if that was some time ago.
	warn := first || x.err.Error() != err.Error() && time.Since(x.warned) > warnAgain
	x.err = err
	if warn {
		x.warned = time.Now()
	}
	x.backlog.drop()
	contact := x.contact
	if x.lost.CompareAndSwap(nil, &contact) {
		x.since = time.Now()
	}
	if first {
		x.reportLost()
	}
	x.mu.Unlock()
	x.gen.Add(1)
	x.triedOnce.Do(func() { close(x.tried) })
	if warn {
		x.cfg.Logger.Warn("the Docker daemon is unavailable; what is known of it is served", "host", x.daemon.Host(), "err", err)
	}
}

// A State is how an index is doing.
type State struct {
	// Connected is whether the index is current, and Since for how long it is, or is not.
	Connected bool
	Since     time.Time
	// Err says why it is not connected, if an attempt has failed.
	Err error
	// Containers and Streams are how many there are, Events and Resyncs how many there were.
	Containers, Streams int
	Events, Resyncs     uint64
	// Uninspected are the containers about which the daemon did not answer when it was last
	// asked, or not as it should, and UninspectedErr is why of one of them.
	Uninspected    int
	UninspectedErr error
}

// State returns the index's state for status pages and metrics.
func (x *Index) State() State {
	streams := x.streams.count()
	x.mu.Lock()
	defer x.mu.Unlock()
	failing, example := x.backlog.failing()
	return State{
		Uninspected: failing, UninspectedErr: example,
		Connected: x.lost.Load() == nil, Since: x.since, Err: x.err,
		Containers: len(x.catalogue.entries), Streams: streams,
		Events: x.events.Load(), Resyncs: x.resyncs.Load(),
	}
}

// age is how long ago the index was last known to be current, 0 if it is.
func (x *Index) age() time.Duration {
	if lost := x.lost.Load(); lost != nil {
		return max(time.Since(*lost), 1)
	}
	return 0
}
