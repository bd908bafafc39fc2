package docker

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

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
