package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

// promptly is far below the daemon's deadline and far above what a busy machine takes.
const promptly = 4 * time.Second

// However many containers the daemon does not answer about, another is inspected at once:
// told to whoever attaches it, and shown to its task.
func TestInspectionsThatHangHoldUpNoOther(t *testing.T) {
	t.Parallel()
	for _, n := range []int{8, 32, 100, 250} {
		for _, when := range []string{"starts", "starts of no task", "that run already"} {
			t.Run(fmt.Sprintf("%d %s", n, when), func(t *testing.T) {
				t.Parallel()
				web := fakedocker.Container(5000, "", arn)
				f := fakedocker.T(t)
				var bad []*container.InspectResponse
				for i := range n {
					label := "arn:aws:ecs:us-west-2:123456789012:task/default/bad"
					if when == "starts of no task" {
						label = ""
					}
					bad = append(bad, fakedocker.Container(i, "", label))
				}
				f.Keep(fakedocker.Container(4000, "", "other"))
				if when == "that run already" {
					f.Keep(bad...)
				}
				f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
					good := strings.Contains(r.URL.Path, web.ID) || strings.Contains(r.URL.Path, fakedocker.ID(4000))
					return kind == "inspect" && !good && fakedocker.Hang(kind, w, r)
				})
				f.Serve(t)
				x := newIndex(t, f)
				x.times.call = 10 * time.Second
				r := watch(t, x)
				run(t, x)
				await(t, "the connection", connected(x))
				if when != "that run already" {
					for _, c := range bad {
						happens(f, events.ActionStart, c)
					}
				}
				await(t, "some that hang", func() error {
					if got := f.Count("inspect"); got < min(n, 8) {
						return fmt.Errorf("%d", got)
					}
					return nil
				})
				start := time.Now()
				happens(f, events.ActionStart, web)
				r.await(t, web.ID, web.State.Pid)
				told := time.Since(start)
				task := mustTask(t, x, bindingOf(web.ID))
				answered := time.Since(start)
				other := mustTask(t, x, bindingOf(fakedocker.ID(4000)))
				if took := time.Since(start); told > promptly || took > promptly || len(task.Containers) != 1 || len(other.Containers) != 1 {
					t.Errorf("told after %v, answered after %v and %v", told, answered, took)
				}
			})
		}
	}
}

// What happens to a container next does not wait for an inspection of it that hangs.
func TestAnInspectionThatHangsHoldsUpNoLaterOne(t *testing.T) {
	t.Parallel()
	pause, web := fakedocker.Container(0, "", "other"), fakedocker.Container(1, "", arn)
	f := fakedocker.T(t)
	f.Keep(pause)
	f.Serve(t)
	x := newIndex(t, f)
	x.times.call = time.Minute
	r := watch(t, x)
	run(t, x)
	await(t, "the connection", connected(x))
	var hang, hung atomic.Int64
	f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
		if kind != "inspect" || !strings.Contains(r.URL.Path, web.ID) || hang.Add(-1) < 0 {
			return false
		}
		hung.Add(1)
		return fakedocker.Hang(kind, w, r)
	})
	for n := range int64(3) {
		hang.Store(n + 1)
		before := hung.Load()
		web.State.Pid += 10
		start := time.Now()
		for i := range n + 1 {
			happens(f, events.ActionStart, web)
			await(t, "an inspection that hangs", func() error {
				if got := hung.Load() - before; got < i+1 {
					return fmt.Errorf("%d, want %d", got, i+1)
				}
				return nil
			})
		}
		happens(f, events.ActionStart, web)
		r.await(t, web.ID, web.State.Pid)
		if took := time.Since(start); took > promptly {
			t.Errorf("after %d that hung, told after %v", n+1, took)
		}
	}
}

// A storm of events of a container whose inspections are slow is no storm of inspections,
// and what they say is taken down.
func TestSlowInspectionsAreFew(t *testing.T) {
	t.Parallel()
	web := fakedocker.Container(0, "", arn)
	f, x := indexOf(t, web)
	await(t, "the connection", connected(x))
	b := bindingOf(web.ID)
	mustTask(t, x, b)
	var most, now atomic.Int64
	f.Replace(func(kind string, _ http.ResponseWriter, _ *http.Request) bool {
		if kind == "inspect" {
			n := now.Add(1)
			defer now.Add(-1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			<-time.After(500 * time.Millisecond)
		}
		return false
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range 200 {
		c := fakedocker.Container(0, "", arn)
		c.HostConfig.Memory = int64(i) << 20
		f.Put(events.ActionUpdate, c)
		<-tick.C
	}
	awaitTask(t, x, b, "the last update", func(task *ecs.Task) bool { return task.Containers[0].Memory == 199 })
	if n := most.Load(); n > 8 {
		t.Errorf("%d inspections of one container at once", n)
	}
}

// inspectionsFail are the ways in which a daemon that goes on with its events describes no
// container.
func inspectionsFail(t *testing.T) map[string]func(*fakedocker.Daemon, *Index) {
	return map[string]func(*fakedocker.Daemon, *Index){
		"inspections hang": func(f *fakedocker.Daemon, _ *Index) {
			f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
				return kind == "inspect" && fakedocker.Hang(kind, w, r)
			})
		},
		"inspections fail": func(f *fakedocker.Daemon, _ *Index) {
			f.Replace(func(kind string, w http.ResponseWriter, _ *http.Request) bool {
				if kind == "inspect" {
					w.WriteHeader(http.StatusInternalServerError)
				}
				return kind == "inspect"
			})
		},
		"the API is closed": func(f *fakedocker.Daemon, _ *Index) { f.CloseAPI() },
		"the API is closed, which is known": func(f *fakedocker.Daemon, x *Index) {
			f.CloseAPI()
			await(t, "the loss", func() error {
				if x.State().Connected {
					return errors.New("connected")
				}
				return nil
			})
		},
	}
}

// The end of a container is known by its event: told to whoever detaches it and shown to its
// task, though the daemon answers no inspection, or no request at all any more.
func TestAnEndNeedsNoInspection(t *testing.T) {
	t.Parallel()
	for name, fail := range inspectionsFail(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			web, app := fakedocker.Container(0, "", arn), fakedocker.Container(1, fakedocker.ID(0), arn)
			f, x := indexOf(t, web, app)
			await(t, "the connection", connected(x))
			b := bindingOf(web.ID)
			mustTask(t, x, b)
			r := watch(t, x)
			r.await(t, web.ID, web.State.Pid)
			fail(f, x)
			start := time.Now()
			for _, c := range []*container.InspectResponse{app, web} {
				stopped := fakedocker.Stopped(c, 3)
				f.Keep(stopped)
				f.Publish(events.Message{
					Type: events.ContainerEventType, Action: events.ActionDie,
					Actor: events.Actor{ID: c.ID, Attributes: map[string]string{ecs.LabelTaskARN: arn, "exitCode": "3"}},
				})
				r.await(t, c.ID, 0)
			}
			if took := time.Since(start); took > promptly {
				t.Errorf("told after %v", took)
			}
			task, _, err := x.Task(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if c := task.Containers[1]; task.Desired != ecs.StatusStopped || c.Known != ecs.StatusStopped || c.ExitCode == nil || *c.ExitCode != 3 || c.Finished.IsZero() {
				t.Errorf("shown as %+v in a task of desired status %v", c, task.Desired)
			}
			f.Replace(nil)
			if err := f.Stop(); err != nil {
				t.Fatal(err)
			}
			for _, c := range []*container.InspectResponse{web, app} {
				c.State.Pid += 100
				c.State.StartedAt = time.Now().UTC().Format(time.RFC3339Nano)
				f.Keep(c)
			}
			if err := f.Start(); err != nil {
				t.Fatal(err)
			}
			r.await(t, web.ID, web.State.Pid)
			awaitTask(t, x, b, "the next life", func(task *ecs.Task) bool {
				return task.Desired == ecs.StatusRunning && task.Containers[1].Known == ecs.StatusRunning
			})
		})
	}
}

// The daemon tells once more of the past when it is subscribed to. Ends of earlier lives do
// not end what runs now.
func TestEndsOfThePastAreNoEnds(t *testing.T) {
	t.Parallel()
	web := fakedocker.Container(0, "", arn)
	web.State.StartedAt = time.Now().UTC().Format(time.RFC3339Nano)
	f := fakedocker.T(t)
	f.Keep(web)
	die := func(at time.Time) {
		f.Publish(events.Message{
			Type: events.ContainerEventType, Action: events.ActionDie, TimeNano: at.UnixNano(),
			Actor: events.Actor{ID: web.ID, Attributes: web.Config.Labels},
		})
	}
	for n := range 100 {
		die(time.Now().Add(-time.Duration(n+1) * time.Second))
	}
	f.Serve(t)
	x := newIndex(t, f)
	r := watch(t, x)
	run(t, x)
	r.await(t, web.ID, web.State.Pid)
	for range 3 {
		events := x.State().Events
		if err := errors.Join(f.Stop(), f.Start()); err != nil {
			t.Fatal(err)
		}
		await(t, "the events of the past", func() error {
			if n := x.State().Events - events; n < 100 {
				return fmt.Errorf("%d", n)
			}
			return connected(x)()
		})
	}
	await(t, "all inspections", func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if n := len(x.backlog.inspections); n > 0 {
			return fmt.Errorf("%d to come", n)
		}
		return nil
	})
	if pids := r.pids(web.ID); slices.Contains(pids, 0) {
		t.Errorf("told of the processes %v of one that runs", pids)
	}
	die(time.Now())
	await(t, "an end by its event, and what the inspection says then", func() error {
		pids := r.pids(web.ID)
		if i := slices.Index(pids, 0); i < 0 || i == len(pids)-1 {
			return fmt.Errorf("told %v", pids)
		}
		return nil
	})
}

// A daemon that comes back after some time is reached as soon as it answers.
func TestADaemonThatComesBackIsReachedAtOnce(t *testing.T) {
	t.Parallel()
	web := fakedocker.Container(0, "", arn)
	f := fakedocker.T(t)
	f.Keep(web)
	f.Serve(t)
	x := newIndex(t, f)
	q := quick()
	x.times = defaultTimes
	x.times.patience, x.times.reach = q.patience, reachSocket
	r := watch(t, x)
	run(t, x)
	for n := range 3 {
		r.await(t, web.ID, web.State.Pid)
		if err := f.Stop(); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Second) // a daemon's pace
		web.State.Pid = 1000 + n
		f.Keep(web)
		start := time.Now()
		if err := f.Start(); err != nil {
			t.Fatal(err)
		}
		r.await(t, web.ID, web.State.Pid)
		took := time.Since(start)
		t.Logf("told %v after the daemon's start", took)
		if took > 700*time.Millisecond {
			t.Errorf("told %v after the daemon's start", took)
		}
	}
}

// Whatever the daemon does wrong beside it, a container that starts is told of.
func TestDaemonsThatDoHalf(t *testing.T) {
	t.Parallel()
	once := func(do fakedocker.Handler) fakedocker.Handler {
		var done atomic.Bool
		return func(kind string, w http.ResponseWriter, r *http.Request) bool {
			return !done.Swap(true) && do(kind, w, r)
		}
	}
	only := func(want string, do fakedocker.Handler) fakedocker.Handler {
		return func(kind string, w http.ResponseWriter, r *http.Request) bool { return kind == want && do(kind, w, r) }
	}
	text := func(text string) fakedocker.Handler {
		return func(_ string, w http.ResponseWriter, _ *http.Request) bool {
			io.WriteString(w, text)
			return true
		}
	}
	tests := map[string]fakedocker.Handler{
		"events that end at once, always": only("/events", text("")),
		"events that are garbage, always": only("/events", text("<html>")),
		"no events: forbidden": only("/events", func(_ string, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}),
		"events of nothing, always":       only("/events", text(`{}{"Actor":{}}{"Type":"container","Action":"die","Actor":{"ID":"x"}}`)),
		"a list that hangs, once":         only("/containers/json", once(fakedocker.Hang)),
		"a list that is garbage, once":    only("/containers/json", once(text("<html>"))),
		"a ping that hangs, once":         only("/_ping", once(fakedocker.Hang)),
		"a subscription that hangs, once": only("/events", once(fakedocker.Hang)),
		"inspections of others hang": func(kind string, w http.ResponseWriter, r *http.Request) bool {
			return kind == "inspect" && !strings.Contains(r.URL.Path, fakedocker.ID(1)) && fakedocker.Hang(kind, w, r)
		},
		"an inspection that hangs, once":   only("inspect", once(fakedocker.Hang)),
		"an inspection of garbage, once":   only("inspect", once(text("<html>"))),
		"an inspection of odd types, once": only("inspect", once(text(`{"Id":7,"State":"running"}`))),
	}
	for name, instead := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fakedocker.T(t)
			huge := fakedocker.Container(0, "", "other")
			huge.Config.Labels["huge"] = strings.Repeat("x", 256<<10)
			f.Keep(huge)
			f.Replace(instead)
			f.Serve(t)
			x := newIndex(t, f)
			r := watch(t, x)
			run(t, x)
			web := fakedocker.Container(1, "", arn)
			happens(f, events.ActionStart, web)
			r.await(t, web.ID, web.State.Pid)
			awaitTask(t, x, bindingOf(web.ID), "its task", func(task *ecs.Task) bool { return len(task.Containers) == 1 })
		})
	}
}

// A stream of events that always ends at once has everything listed and inspected again each
// time: the pauses between grow.
func TestConnectionsThatBreakAreFew(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	f.Keep(fakedocker.Container(0, "", arn))
	f.Replace(func(kind string, _ http.ResponseWriter, _ *http.Request) bool { return kind == "/events" })
	f.Serve(t)
	x := newIndex(t, f)
	x.times.reach, x.times.broken = reachSocket, defaultTimes.broken
	run(t, x)
	<-time.After(4 * time.Second)
	// After 0.1, 0.2, 0.4, 0.8, 1.6 s, each half of it at least.
	if n := f.Count("/events"); n < 3 || n > 9 {
		t.Errorf("%d connections in 4 s", n)
	}
}

// A daemon that lists a task's containers and describes none cannot be asked; that is not
// that they are not there.
func TestATaskThatIsListedAndNotDescribed(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	pause := fakedocker.Container(0, "", arn)
	f.Keep(pause)
	f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
		return kind == "inspect" && fakedocker.Hang(kind, w, r)
	})
	f.Serve(t)
	x := newIndex(t, f)
	run(t, x)
	await(t, "the connection", connected(x))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, _, err := x.Task(ctx, bindingOf(pause.ID)); !errors.Is(err, ecs.ErrDockerUnavailable) {
		t.Errorf("%v, want %v", err, ecs.ErrDockerUnavailable)
	}
	await(t, "the failure in the state", func() error {
		if s := x.State(); s.Uninspected != 1 || !errors.Is(s.UninspectedErr, context.DeadlineExceeded) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}
