package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

const arn = "arn:aws:ecs:us-west-2:123456789012:task/default/web"

// quick are times that a test can wait for.
func quick() times {
	q := defaultTimes
	q.call, q.patience, q.probe = 2*time.Second, 300*time.Millisecond, 100*time.Millisecond
	q.search, q.addrs = 200*time.Millisecond, 200*time.Millisecond
	q.retryMin, q.retryMax = 10*time.Millisecond, 50*time.Millisecond
	q.sample, q.fresh, q.idle = 500*time.Millisecond, 200*time.Millisecond, 300*time.Millisecond
	return q
}

func noAddrs(int) ([]netip.Addr, error) { return nil, nil }

func contained(int) bool { return false }

func noCounters(int) (map[string]ecs.Counters, error) { return nil, nil }

// newIndex makes an index of the fake that does not run yet.
func newIndex(t testing.TB, f *fakedocker.Daemon) *Index {
	t.Helper()
	daemon, err := NewClient(f.Host)
	if err != nil {
		t.Fatal(err)
	}
	x := New(Config{Client: daemon, Addresses: noAddrs, Counters: noCounters, Uncontained: contained, Logger: slog.New(slog.DiscardHandler)})
	x.times = quick()
	return x
}

// run runs the index until the test ends, or the function it returns is called.
func run(t testing.TB, x *Index) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// indexOf runs an index of the containers.
func indexOf(t testing.TB, containers ...*container.InspectResponse) (*fakedocker.Daemon, *Index) {
	t.Helper()
	f := fakedocker.T(t)
	f.Keep(containers...)
	f.Serve(t)
	x := newIndex(t, f)
	run(t, x)
	return f, x
}

// bindingOf is a binding of the task whose pause container has the ID.
func bindingOf(pause string) *ecs.Binding {
	return &ecs.Binding{
		Attachment: ecs.Attachment{Network: "ecs-task", Container: pause, IfName: "eth0"},
		Addrs:      []netip.Prefix{netip.MustParsePrefix("169.254.172.7/22")},
	}
}

// await waits until check has nothing to complain of.
func await(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// mustTask returns the task of a binding that is to be current.
func mustTask(t testing.TB, x *Index, b *ecs.Binding) *ecs.Task {
	t.Helper()
	task, age, err := x.Task(t.Context(), b)
	if err != nil || age != 0 {
		t.Fatalf("Task: age %v, %v; want a current one", age, err)
	}
	return task
}

// awaitTask waits until the task is as check wants it.
func awaitTask(t testing.TB, x *Index, b *ecs.Binding, what string, check func(*ecs.Task) bool) {
	t.Helper()
	await(t, what, func() error {
		task, age, err := x.Task(t.Context(), b)
		if err == nil && age == 0 && check(task) {
			return nil
		}
		return fmt.Errorf("age %v, %v, task %+v", age, err, task)
	})
}

func ids(task *ecs.Task) (ids []string) {
	for _, c := range task.Containers {
		ids = append(ids, c.ID)
	}
	return ids
}

func TestATaskIsItsContainersAndNoOther(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	app, sidecar := fakedocker.Container(1, pause.ID, arn), fakedocker.Container(2, pause.ID, "")
	other := fakedocker.Container(3, "", "other")
	_, x := indexOf(t, sidecar, other, app, fakedocker.Container(4, other.ID, arn), pause)
	b := bindingOf(pause.ID)
	task := mustTask(t, x, b)
	if got, want := ids(task), []string{pause.ID, app.ID, sidecar.ID}; !slices.Equal(got, want) {
		t.Errorf("containers %v, want %v", got, want)
	}
	if !task.Containers[0].Pause || task.ARN != arn || task.Family != "web" || task.Known != ecs.StatusRunning {
		t.Errorf("task %+v", task)
	}
}

func TestEventsAreFollowed(t *testing.T) {
	t.Parallel()
	pause, app := fakedocker.Container(0, "", arn), fakedocker.Container(1, fakedocker.ID(0), arn)
	with := func(change func(*container.InspectResponse)) *container.InspectResponse {
		c := fakedocker.Container(1, pause.ID, arn)
		change(c)
		return c
	}
	tests := map[string]struct {
		action events.Action
		to     *container.InspectResponse
		want   func(*ecs.Container) bool
	}{
		"die": {events.ActionDie, fakedocker.Stopped(app, 3), func(c *ecs.Container) bool {
			return c.Known == ecs.StatusStopped && *c.ExitCode == 3 && !c.Finished.IsZero()
		}},
		"rename": {events.ActionRename, with(func(c *container.InspectResponse) { c.Name = "/renamed" }), func(c *ecs.Container) bool {
			return c.DockerName == "renamed"
		}},
		"update": {events.ActionUpdate, with(func(c *container.InspectResponse) { c.HostConfig.Memory = 128 << 20 }), func(c *ecs.Container) bool {
			return c.Memory == 128
		}},
		"health_status": {events.ActionHealthStatusUnhealthy, with(func(c *container.InspectResponse) {
			c.State.Health = &container.Health{Status: container.Unhealthy, Log: []*container.HealthcheckResult{{ExitCode: 7, Output: "no"}}}
		}), func(c *ecs.Container) bool {
			return c.Health != nil && c.Health.Status == "UNHEALTHY" && c.Health.ExitCode == 7 && c.Health.Output == "no"
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, x := indexOf(t, pause, app)
			b := bindingOf(pause.ID)
			before := mustTask(t, x, b)
			f.Put(test.action, test.to)
			awaitTask(t, x, b, name, func(task *ecs.Task) bool { return test.want(&task.Containers[1]) })
			if test.want(&before.Containers[1]) {
				t.Error("the task from before the event has changed")
			}
		})
	}
	t.Run("create, destroy and network", func(t *testing.T) {
		t.Parallel()
		f, x := indexOf(t, pause)
		b := bindingOf(pause.ID)
		mustTask(t, x, b)
		f.Put(events.ActionCreate, app)
		awaitTask(t, x, b, "a container comes", func(task *ecs.Task) bool { return len(task.Containers) == 2 })
		f.Remove(app.ID)
		awaitTask(t, x, b, "a container goes", func(task *ecs.Task) bool { return len(task.Containers) == 1 })
		f.Keep(app)
		f.Publish(events.Message{
			Type: events.NetworkEventType, Action: events.ActionConnect,
			Actor: events.Actor{ID: "bridge", Attributes: map[string]string{"container": app.ID}},
		})
		awaitTask(t, x, b, "a container is connected", func(task *ecs.Task) bool { return len(task.Containers) == 2 })
	})
}

func TestAnUnchangedTaskIsTheSamePointer(t *testing.T) {
	t.Parallel()
	pause, other := fakedocker.Container(0, "", arn), fakedocker.Container(1, "", "other")
	f, x := indexOf(t, pause, other)
	b, b2 := bindingOf(pause.ID), bindingOf(other.ID)
	task := mustTask(t, x, b)
	f.Put(events.ActionDie, fakedocker.Stopped(other, 0))
	awaitTask(t, x, b2, "the other task ends", func(task *ecs.Task) bool { return task.Known == ecs.StatusStopped })
	if again := mustTask(t, x, b); again != task {
		t.Error("another task's event made a new task")
	}
}

func TestAnUnchangedTaskCostsNoAllocation(t *testing.T) {
	pause := fakedocker.Container(0, "", arn)
	_, x := indexOf(t, pause)
	b := bindingOf(pause.ID)
	mustTask(t, x, b)
	if n := testing.AllocsPerRun(1000, func() {
		if _, _, err := x.Task(t.Context(), b); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for an unchanged task, want none", n)
	}
}

func TestAStormOfEventsIsFewInspections(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	f, x := indexOf(t, pause)
	b := bindingOf(pause.ID)
	mustTask(t, x, b)
	f.Replace(func(kind string, _ http.ResponseWriter, _ *http.Request) bool {
		if kind == "inspect" {
			<-time.After(20 * time.Millisecond) // slower than the events
		}
		return false
	})
	for i := range 500 {
		c := fakedocker.Container(0, "", arn)
		c.HostConfig.Memory = int64(i) << 20
		f.Put(events.ActionUpdate, c)
	}
	awaitTask(t, x, b, "the last update", func(task *ecs.Task) bool { return task.Containers[0].Memory == 499 })
	if n := f.Count("inspect"); n > 250 {
		t.Errorf("%d inspections for 500 events of one container", n)
	}
}

// What happens between the daemon's list and its subscribing us must not be lost, whether
// we are late to read the list or the daemon is late to subscribe.
func TestNothingIsLostBesideTheList(t *testing.T) {
	t.Parallel()
	for _, late := range []string{"list", "subscription"} {
		t.Run("a late "+late, func(t *testing.T) {
			t.Parallel()
			pause := fakedocker.Container(0, "", arn)
			f := fakedocker.T(t)
			f.Keep(pause)
			listed := make(chan struct{})
			list := sync.OnceFunc(func() {
				if late == "list" {
					f.Put(events.ActionCreate, fakedocker.Container(1, pause.ID, arn))
				}
				close(listed)
			})
			f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
				switch kind {
				case "/events":
					w.(http.Flusher).Flush() // for the client it is subscribed now
					if late == "subscription" {
						<-listed
						f.Put(events.ActionCreate, fakedocker.Container(1, pause.ID, arn))
					}
					return false
				case "/containers/json":
					f.ServeList(w, r)
					list()
					return true
				}
				return false
			})
			f.Serve(t)
			x := newIndex(t, f)
			run(t, x)
			awaitTask(t, x, bindingOf(pause.ID), "the new container", func(task *ecs.Task) bool { return len(task.Containers) == 2 })
		})
	}
}

func TestAListOfManyPagesIsWhole(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	for n := range 2*pageSize + 1 {
		f.Keep(fakedocker.Container(n, "", ""))
	}
	// The container that the second page starts after is removed before that is asked for.
	last := fakedocker.ID(pageSize + 1)
	f.Replace(func(kind string, _ http.ResponseWriter, r *http.Request) bool {
		if kind == "/containers/json" && strings.Contains(r.URL.RawQuery, last) {
			f.Forget(last)
		}
		return false
	})
	f.Serve(t)
	x := newIndex(t, f)
	run(t, x)
	await(t, "all containers", func() error {
		if n := x.State().Containers; n != 2*pageSize {
			return fmt.Errorf("%d, want %d", n, 2*pageSize)
		}
		return nil
	})
}

// A request must not wait until ten thousand containers have been inspected.
func TestTheFirstRequestGoesFirst(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	pause := fakedocker.Container(0, "", arn)
	f.Keep(pause)
	f.Keep(fakedocker.Container(1, pause.ID, arn))
	for n := range 2000 {
		f.Keep(fakedocker.Container(n+2, "", ""))
	}
	f.Replace(func(kind string, _ http.ResponseWriter, _ *http.Request) bool {
		if kind == "inspect" {
			<-time.After(10 * time.Millisecond)
		}
		return false
	})
	f.Serve(t)
	x := newIndex(t, f)
	x.times.call, x.times.patience = 20*time.Second, 10*time.Second
	run(t, x)
	task := mustTask(t, x, bindingOf(pause.ID))
	if n := f.Count("inspect"); len(task.Containers) != 2 || n > 500 {
		t.Errorf("after %d inspections the task has containers %v", n, ids(task))
	}
}

func TestAContainerThatHasJustStartedIsLookedFor(t *testing.T) {
	t.Parallel()
	f, x := indexOf(t)
	await(t, "the connection", connected(x))
	pause := fakedocker.Container(0, "", "")
	app := fakedocker.Container(1, "", arn)
	f.Keep(pause, app)
	b := bindingOf(pause.ID)
	b.TaskARN = arn
	lists := f.Count("/containers/json")
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() {
			if task, _, err := x.Task(t.Context(), b); err != nil || len(task.Containers) != 2 {
				t.Errorf("Task: %+v, %v", task, err)
			}
		})
	}
	asking.Wait()
	if n := f.Count("/containers/json") - lists; n != 2 {
		t.Errorf("50 requests made %d lists, want one by ID and one by label", n)
	}
	short := bindingOf(pause.ID[:shortID])
	if task := mustTask(t, x, short); task.ARN != pause.ID {
		t.Errorf("by the start of its ID the task is %s, want %s", task.ARN, pause.ID)
	}
}

func connected(x *Index) func() error {
	return func() error {
		if s := x.State(); !s.Connected {
			return fmt.Errorf("state %+v", s)
		}
		return nil
	}
}

func TestAnUnknownTaskIsNotLookedForAllTheTime(t *testing.T) {
	t.Parallel()
	f, x := indexOf(t, fakedocker.Container(0, "", arn))
	x.times.search = time.Minute
	await(t, "the connection", connected(x))
	lists := f.Count("/containers/json")
	b := bindingOf(fakedocker.ID(77))
	for range 100 {
		if _, _, err := x.Task(t.Context(), b); !errors.Is(err, ecs.ErrTaskNotReady) {
			t.Fatalf("Task: %v, want %v", err, ecs.ErrTaskNotReady)
		}
	}
	if n := f.Count("/containers/json") - lists; n != 1 {
		t.Errorf("100 requests made %d lists, want 1", n)
	}
}

// A container that the guard does not hold is known as such, and warned of once: again only
// after it has been held, and not for a container of no task.
func TestUncontained(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	pause, other := fakedocker.Container(0, "", arn), fakedocker.Container(1, "", "")
	member := fakedocker.Container(2, pause.ID, "")
	f.Keep(pause, other, member)
	f.Serve(t)
	var log bytes.Buffer
	x := newIndex(t, f)
	x.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	x.cfg.Uncontained = func(pid int) bool { return pid != pause.State.Pid }
	stop := run(t, x)
	await(t, "the connection", connected(x))
	task := mustTask(t, x, bindingOf(pause.ID))
	for _, c := range task.Containers {
		if want := c.ID == member.ID; c.Uncontained != want {
			t.Errorf("%s is uncontained: %t, want %t", c.DockerName, c.Uncontained, want)
		}
	}
	inspections := f.Count("inspect")
	f.Put(events.ActionUpdate, member)
	await(t, "another look", func() error {
		if n := f.Count("inspect"); n == inspections {
			return errors.New("none yet")
		}
		return nil
	})
	mustTask(t, x, bindingOf(pause.ID))
	stop()
	if n := strings.Count(log.String(), "CAP_NET_ADMIN"); n != 1 || !strings.Contains(log.String(), "container="+member.ID) {
		t.Errorf("%d warnings, want one of %s:\n%s", n, member.ID, &log)
	}
}

func TestADaemonThatIsGone(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	pause := fakedocker.Container(0, "", arn)
	f.Keep(pause)
	var log bytes.Buffer
	x := newIndex(t, f)
	x.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	stop := run(t, x)
	b, unknown := bindingOf(pause.ID), bindingOf(fakedocker.ID(77))

	if _, _, err := x.Task(t.Context(), b); !errors.Is(err, ecs.ErrDockerUnavailable) {
		t.Errorf("before it has come: %v, want %v", err, ecs.ErrDockerUnavailable)
	}
	if s := x.State(); s.Connected || s.Err == nil {
		t.Errorf("before it has come: %+v", s)
	}
	f.Serve(t)
	await(t, "the connection", connected(x))
	task := mustTask(t, x, b)

	f.Stop()
	var age time.Duration
	await(t, "the loss", func() error {
		same, lost, err := x.Task(t.Context(), b)
		if age = lost; age == 0 || same != task || err != nil {
			return fmt.Errorf("age %v, same task %t, %v", age, same == task, err)
		}
		return nil
	})
	await(t, "the age to grow", func() error {
		if _, later, _ := x.Task(t.Context(), b); later <= age {
			return fmt.Errorf("age %v after %v", later, age)
		}
		return nil
	})
	if _, _, err := x.Task(t.Context(), unknown); !errors.Is(err, ecs.ErrDockerUnavailable) {
		t.Errorf("an unknown task: %v, want %v", err, ecs.ErrDockerUnavailable)
	}

	f.Keep(fakedocker.Stopped(pause, 1))
	f.LoseEvents()
	f.Serve(t)
	awaitTask(t, x, b, "what has happened meanwhile", func(task *ecs.Task) bool { return task.Known == ecs.StatusStopped })
	stop()
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("%d lines of log, want one for each change of state:\n%s", n, &log)
	}
}

// Each way to fail is noticed, served over, and recovered from.
func TestADaemonThatFails(t *testing.T) {
	t.Parallel()
	says := func(kind, text string) func(string, http.ResponseWriter, *http.Request) bool {
		return func(k string, w http.ResponseWriter, _ *http.Request) bool {
			if k == kind {
				io.WriteString(w, text)
			}
			return k == kind
		}
	}
	tests := map[string]func(string, http.ResponseWriter, *http.Request) bool{
		"hangs":                     fakedocker.Hang,
		"lists garbage":             says("/containers/json", "<html>"),
		"lists half":                says("/containers/json", `[{"Id":"`+fakedocker.ID(0)),
		"lists what has no ID":      says("/containers/json", `[{}]`),
		"says nothing instead":      says("/containers/json", ""),
		"sends garbage as an event": says("/events", "}{"),
		"ends the events":           says("/events", ""),
	}
	for name, instead := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pause := fakedocker.Container(0, "", arn)
			f, x := indexOf(t, pause)
			b := bindingOf(pause.ID)
			task := mustTask(t, x, b)

			f.Replace(instead)
			if name != "hangs" {
				f.Stop() // only the new connection meets it
				f.Serve(t)
			}
			await(t, "the loss", func() error {
				start := time.Now()
				same, age, err := x.Task(t.Context(), b)
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("a request took %v", took)
				}
				if err != nil || age == 0 || same != task {
					return fmt.Errorf("age %v, same task %t, %v", age, same == task, err)
				}
				return nil
			})
			f.Replace(nil)
			awaitTask(t, x, b, "the recovery", func(task *ecs.Task) bool { return len(task.Containers) == 1 })
		})
	}
}

// One container that cannot be inspected must cost the others nothing, and its task no
// more than what is new of it.
func TestOneContainerThatCannotBeInspected(t *testing.T) {
	t.Parallel()
	pause, other := fakedocker.Container(0, "", arn), fakedocker.Container(1, "", "other")
	tests := map[string]func(w http.ResponseWriter, r *http.Request){
		"no answer": func(w http.ResponseWriter, r *http.Request) { fakedocker.Hang("", w, r) },
		"an error":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"half":      func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"Id":"`+pause.ID) },
		"nothing":   func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{}`) },
		"another's": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"Id":"`+other.ID+`"}`) },
	}
	for name, fail := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, x := indexOf(t, pause, other)
			b := bindingOf(pause.ID)
			task := mustTask(t, x, b)
			f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
				bad := kind == "inspect" && strings.Contains(r.URL.Path, pause.ID)
				if bad {
					fail(w, r)
				}
				return bad
			})
			f.Put(events.ActionDie, fakedocker.Stopped(pause, 1))
			f.Put(events.ActionDie, fakedocker.Stopped(other, 1))
			awaitTask(t, x, bindingOf(other.ID), "the other task", func(task *ecs.Task) bool { return task.Known == ecs.StatusStopped })
			if mustTask(t, x, b) != task {
				t.Error("the task has changed")
			}
			f.Replace(nil)
			awaitTask(t, x, b, "the recovery", func(task *ecs.Task) bool { return task.Known == ecs.StatusStopped })
		})
	}
}

// Events may be lost: what the list shows otherwise is inspected.
func TestTheListIsComparedAtIntervals(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	app, gone := fakedocker.Container(1, pause.ID, arn), fakedocker.Container(2, pause.ID, arn)
	f := fakedocker.T(t)
	f.Keep(pause)
	f.Keep(app)
	f.Keep(gone)
	f.Serve(t)
	x := newIndex(t, f)
	x.times.resync = 20 * time.Millisecond
	run(t, x)
	b := bindingOf(pause.ID)
	mustTask(t, x, b)
	inspections := f.Count("inspect")
	f.Keep(fakedocker.Stopped(app, 5))
	f.Forget(gone.ID)
	f.Keep(fakedocker.Container(3, pause.ID, arn))
	awaitTask(t, x, b, "the comparison", func(task *ecs.Task) bool {
		return slices.Equal(ids(task), []string{pause.ID, app.ID, fakedocker.ID(3)}) && task.Containers[1].Known == ecs.StatusStopped
	})
	resyncs := x.State().Resyncs
	await(t, "more comparisons", func() error {
		if n := x.State().Resyncs; n < resyncs+3 {
			return fmt.Errorf("%d, of which %d before", n, resyncs)
		}
		return nil
	})
	if n := f.Count("inspect") - inspections; n != 3 {
		t.Errorf("%d inspections for three changes", n)
	}
}

func TestAddressesOfTheNamespace(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	f := fakedocker.T(t)
	f.Keep(pause)
	f.Serve(t)
	x := newIndex(t, f)
	var addrs atomic.Pointer[[]netip.Addr]
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("169.254.172.7"), netip.MustParseAddr("fe80::1")})
	x.cfg.Addresses = func(pid int) ([]netip.Addr, error) {
		if pid != pause.State.Pid {
			t.Errorf("asked for process %d, want %d", pid, pause.State.Pid)
		}
		if a := addrs.Load(); a != nil {
			return *a, nil
		}
		return nil, errors.New("no such process")
	}
	run(t, x)
	b := bindingOf(pause.ID)
	has := func(want string) func(*ecs.Task) bool {
		return func(task *ecs.Task) bool { return fmt.Sprint(task.Containers[0].Addrs) == want }
	}
	awaitTask(t, x, b, "our own address where there is no other", has("[169.254.172.7]"))
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("169.254.172.7"), netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")})
	awaitTask(t, x, b, "addresses that came later", has("[10.0.0.7 fd00::7]"))
	addrs.Store(nil)
	task := mustTask(t, x, b)
	await(t, "a second reading", func() error {
		if v := x.views.Get(b); v.current(x) == nil {
			mustTask(t, x, b)
			return nil
		}
		return errors.New("the first is still good")
	})
	if mustTask(t, x, b) != task {
		t.Error("addresses that cannot be read have changed the task")
	}
	f.Put(events.ActionDie, fakedocker.Stopped(pause, 0))
	awaitTask(t, x, b, "a namespace that has ended", has("[169.254.172.7]"))
}

func TestAViewGoesWithItsBinding(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	_, x := indexOf(t, pause)
	for range 100 {
		mustTask(t, x, bindingOf(pause.ID))
	}
	await(t, "the views to go", func() error {
		runtime.GC()
		if n := x.views.Len(); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
}

// The resolver is to live in 100 MB beside ten thousand containers, what the collector
// lets stand included: 3 KB for each leave it most of that.
func TestWhatIsKeptIsSmall(t *testing.T) {
	containers := testnet.Soak(3000, 9999)
	f := fakedocker.T(t)
	for n := 0; n < containers; n += 3 {
		pause := fakedocker.Container(n, "", fmt.Sprint(arn, n))
		f.Keep(pause)
		f.Keep(fakedocker.Container(n+1, pause.ID, fmt.Sprint(arn, n)))
		f.Keep(fakedocker.Container(n+2, pause.ID, fmt.Sprint(arn, n)))
	}
	f.Serve(t)
	live := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	x := newIndex(t, f)
	x.times.call = 20 * time.Second
	run(t, x)
	await(t, "all inspections", func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if known, left := len(x.catalogue.entries), len(x.backlog.inspections); known != containers || left > 0 {
			return fmt.Errorf("%d containers, %d to be inspected", known, left)
		}
		return nil
	})
	each := (int(live()) - int(before)) / containers
	t.Logf("%d bytes a container", each)
	if each > 3000 {
		t.Errorf("%d bytes a container, want 3000 at most", each)
	}
	runtime.KeepAlive(x)
}
