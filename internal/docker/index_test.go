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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

const arn = "arn:aws:ecs:us-west-2:123456789012:task/default/web"

// quick are times that a test can wait for.
func quick() times {
	q := defaultTimes
	q.call, q.patience, q.probe = 2*time.Second, 300*time.Millisecond, 100*time.Millisecond
	q.search, q.addrs, q.unread = 200*time.Millisecond, 200*time.Millisecond, 50*time.Millisecond
	q.reach, q.broken = 50*time.Millisecond, 50*time.Millisecond
	q.sample, q.fresh, q.silence, q.idle = 500*time.Millisecond, 200*time.Millisecond, time.Second, 300*time.Millisecond
	return q
}

var discard = slog.New(slog.DiscardHandler)

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
	x := New(Config{Client: daemon, Addresses: noAddrs, Counters: noCounters, CanChangeHostNetwork: contained, Logger: discard})
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

func connected(x *Index) func() error {
	return func() error {
		if s := x.State(); !s.Connected {
			return fmt.Errorf("state %+v", s)
		}
		return nil
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
