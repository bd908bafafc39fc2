package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"taskmeta/internal/ecs"
)

// Stats returns what the daemon says of the containers' use of resources, by ID: its own
// JSON of a sample that is two seconds old at most and has another before it, with the
// interfaces of the network namespace as `networks` where the daemon leaves them out. A
// container that does not run, or of which no sample comes in time, has none: one alone
// never keeps the others from being answered.
//
// The first question opens a stream of samples, and waits 2.5 seconds at most, for all
// containers together, for the second one of each; later ones are answered from memory until
// nobody has asked for a minute. A container whose samples are overdue is waited for no more.
// Errors: [ecs.ErrDockerUnavailable] if there is no sample at all for want of the daemon.
func (x *Index) Stats(ctx context.Context, ids []string) (map[string]json.RawMessage, error) {
	for _, id := range ids {
		if x.running(id) {
			x.streams.get(x, id) // all at once, before the first is waited for
		}
	}
	limited, cancel := context.WithTimeout(ctx, x.times.sample)
	defer cancel()
	stats := make(map[string]json.RawMessage, len(ids))
	var failed error
	for _, id := range ids {
		sample, err := x.sample(limited, id)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil && sample != nil:
			stats[id] = sample
		case errors.Is(err, errOverdue):
			if x.lost.Load() != nil { // a daemon that is gone is not only late
				failed = fmt.Errorf("statistics of container %s: %w: %w", id, ecs.ErrDockerUnavailable, err)
			}
		case err != nil:
			failed = fmt.Errorf("statistics of container %s: %w: %w", id, ecs.ErrDockerUnavailable, err)
		}
	}
	if len(stats) == 0 && failed != nil {
		return nil, failed
	}
	return stats, nil
}

// sample returns a sample of one container, nil if it does not run.
func (x *Index) sample(ctx context.Context, id string) (sample json.RawMessage, err error) {
	for range 2 { // the stream may be closed as idle at this moment
		if !x.running(id) {
			return nil, nil
		}
		sample, err = x.streams.get(x, id).wait(ctx, x.times)
		if err == nil || errors.Is(err, errOverdue) {
			break
		}
	}
	return sample, err
}

func (x *Index) running(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.catalogue.entries[id]
	return e != nil && e.container != nil && e.container.Known == ecs.StatusRunning
}

// netnsPid returns a process in the network namespace that a container lives in, 0 if
// there is none or it is the host's.
func (x *Index) netnsPid(id string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.catalogue.entries[id]
	if e == nil {
		return 0
	}
	root := x.catalogue.root(e)
	if root.host {
		return 0
	}
	return root.pid
}

// streams are the open streams of samples, one for each container.
type streams struct {
	mu   sync.Mutex
	of   map[string]*stream
	life context.Context // of the index's Run, nil before
	all  sync.WaitGroup
}

// open lets streams be opened until life ends.
func (ss *streams) open(life context.Context) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.of, ss.life = make(map[string]*stream), life
}

// end opens no more streams and waits for the end of those that there are, which comes
// with the end of life.
func (ss *streams) end() {
	ss.mu.Lock()
	ss.life = nil
	ss.mu.Unlock()
	ss.all.Wait()
}

func (ss *streams) count() int {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.of)
}

// get returns the stream of a container, a new one if none is open.
func (ss *streams) get(x *Index, id string) *stream {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.of[id]
	if s == nil {
		s = &stream{id: id, since: time.Now(), changed: make(chan struct{})}
		if ss.life == nil {
			s.end(errNotRunning)
			return s
		}
		ctx, cancel := context.WithCancel(ss.life)
		s.idle = time.AfterFunc(x.times.idle, func() {
			if ss.closeIdle(s, x.times.idle) {
				cancel()
			}
		})
		ss.of[id] = s
		ss.all.Go(func() {
			err := x.readOn(ctx, s)
			cancel()
			s.idle.Stop()
			ss.remove(s)
			s.end(err)
		})
	}
	s.asked = time.Now()
	return s
}

// closeIdle takes the stream away if it has not been asked for so long, and looks again
// later if it has.
func (ss *streams) closeIdle(s *stream, idle time.Duration) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if left := idle - time.Since(s.asked); left > 0 {
		s.idle.Reset(left)
		return false
	}
	ss.drop(s)
	return true
}

func (ss *streams) remove(s *stream) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.drop(s)
}

func (ss *streams) drop(s *stream) {
	if ss.of[s.id] == s {
		delete(ss.of, s.id)
	}
}

var (
	errNotRunning = errors.New("the index is not kept current any more")
	// errOverdue: the daemon sends no sample, or none in time.
	errOverdue = errors.New("no sample has come in time")
)

// A stream holds the last sample of one container.
type stream struct {
	id    string
	since time.Time // when it was opened
	asked time.Time // when it was last asked for; under the lock of the streams
	idle  *time.Timer

	mu      sync.Mutex
	sample  json.RawMessage
	at      time.Time
	ended   bool
	err     error         // why it ended, nil if because the container does not run
	changed chan struct{} // closed at the next sample, and at the end
}

// put is called with each full sample.
func (s *stream) put(sample json.RawMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sample, s.at = sample, time.Now()
	close(s.changed)
	s.changed = make(chan struct{})
}

// end tells those who wait that no more will come.
func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.err = true, err
	close(s.changed)
}

// wait returns a fresh sample as soon as there is one, or nil if the container has stopped.
// A sample is overdue when it has not come in the time that the first one may take since the
// stream was opened, or since the last one was fresh. Whoever asks then waits no more, or
// each question about a task would take as long as its worst container lets it.
func (s *stream) wait(ctx context.Context, t times) (json.RawMessage, error) {
	for {
		s.mu.Lock()
		sample, at, ended, err, changed := s.sample, s.at, s.ended, s.err, s.changed
		s.mu.Unlock()
		switch {
		case ended:
			return nil, err
		case sample != nil && time.Since(at) <= t.fresh:
			return sample, nil
		}
		due := s.since.Add(t.sample)
		if sample != nil {
			due = at.Add(t.fresh + t.sample)
		}
		if time.Until(due) <= 0 {
			return nil, errOverdue
		}
		select {
		case <-changed:
		case <-time.After(time.Until(due)):
			return nil, errOverdue
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errOverdue, ctx.Err())
		}
	}
}

// readOn reads samples into s until the container stops, or the daemon, or ctx. A stream on
// which nothing comes any more is opened anew: a daemon or a proxy may have lost it.
func (x *Index) readOn(ctx context.Context, s *stream) error {
	for {
		err := x.read(ctx, s)
		if ctx.Err() != nil || !errors.Is(err, errOverdue) {
			return err
		}
		x.cfg.Logger.Debug("a stream of statistics is silent: opening it anew", "container", s.id)
	}
}

// read reads one stream of samples. It gives up with [errOverdue] when none has come for
// some seconds, which bounds the wait for the header of the answer too.
func (x *Index) read(ctx context.Context, s *stream) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(x.times.silence, func() { cancel(errOverdue) })
	defer silence.Stop()
	err := x.readSamples(ctx, s, func() { silence.Reset(x.times.silence) })
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// readSamples calls heard for each sample.
func (x *Index) readSamples(ctx context.Context, s *stream, heard func()) error {
	reply, err := x.daemon.cli.Load().ContainerStats(ctx, s.id, true)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if errdefs.IsInvalidArgument(err) { // of another version of the API; the next try has it right
		return errors.Join(err, x.renew(ctx))
	}
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	samples := json.NewDecoder(reply.Body)
	for {
		var raw json.RawMessage
		if err := samples.Decode(&raw); err != nil {
			return err
		}
		heard()
		var sample struct {
			Read     time.Time       `json:"read"`
			PreRead  time.Time       `json:"preread"`
			Networks json.RawMessage `json:"networks"`
		}
		if err := json.Unmarshal(raw, &sample); err != nil {
			return err
		}
		if sample.Read.IsZero() {
			return nil // what Docker sends for a container that does not run
		}
		if sample.PreRead.IsZero() {
			continue // the first one has nothing before it to compute a rate from
		}
		if sample.Networks == nil {
			raw = x.withNetworks(s.id, raw)
		}
		s.put(raw)
	}
}

// withNetworks adds the interfaces of the network namespace that the container lives in,
// which Docker leaves out for one that shares another's, and for interfaces that are not
// its own. The rest stays as it is, byte for byte.
func (x *Index) withNetworks(id string, raw json.RawMessage) json.RawMessage {
	pid := x.netnsPid(id)
	if pid == 0 {
		return raw
	}
	counters, err := x.cfg.Counters(pid)
	if err != nil || len(counters) == 0 {
		x.cfg.Logger.Debug("a task's interfaces cannot be counted", "container", id, "pid", pid, "err", err)
		return raw
	}
	networks, err := json.Marshal(counters)
	if err != nil {
		return raw // cannot be: they are numbers
	}
	body := bytes.TrimSuffix(raw, []byte("}"))
	return slices.Concat(body, []byte(`,"networks":`), networks, []byte("}"))
}
