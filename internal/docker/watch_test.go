package docker

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

// A recorder is a watcher that keeps what it is told.
type recorder struct {
	mu     sync.Mutex
	told   []Container
	listed int
	lost   []error
}

func watch(t testing.TB, x *Index) *recorder {
	t.Helper()
	r := &recorder{}
	locked := func(do func()) {
		r.mu.Lock()
		defer r.mu.Unlock()
		do()
	}
	t.Cleanup(x.Watch(Watcher{
		Changed: func(c Container) { locked(func() { r.told = append(r.told, c) }) },
		Listed:  func() { locked(func() { r.listed++ }) },
		Lost:    func(err error) { locked(func() { r.lost = append(r.lost, err) }) },
	}))
	return r
}

// pids are those that were told of a container, in order.
func (r *recorder) pids(id string) (pids []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.told {
		if c.ID == id {
			pids = append(pids, c.Pid)
		}
	}
	return pids
}

// await waits until the last that is told of a container is the process ID.
func (r *recorder) await(t testing.TB, id string, pid int) {
	t.Helper()
	await(t, fmt.Sprintf("%.12s with process %d", id, pid), func() error {
		if pids := r.pids(id); len(pids) == 0 || pids[len(pids)-1] != pid {
			return fmt.Errorf("told %v", pids)
		}
		return nil
	})
}

func (r *recorder) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told, r.listed, r.lost = nil, 0, nil
}

// happens changes a container, or adds it, and says so with its labels, as Docker does.
func happens(f *fakedocker.Daemon, action events.Action, c *container.InspectResponse) {
	f.Keep(c)
	f.Publish(events.Message{
		Type: events.ContainerEventType, Action: action,
		Actor: events.Actor{ID: c.ID, Attributes: c.Config.Labels},
	})
}

func TestAWatcherIsToldOfWhatRunsAndEnds(t *testing.T) {
	t.Parallel()
	web, old := fakedocker.Container(0, "", arn), fakedocker.Stopped(fakedocker.Container(1, "", arn), 0)
	member := fakedocker.Container(2, web.ID, "")
	f := fakedocker.T(t)
	for _, c := range []*container.InspectResponse{web, old, member} {
		f.Keep(c)
	}
	f.Serve(t)
	x := newIndex(t, f)
	r := watch(t, x)
	run(t, x)
	r.await(t, web.ID, web.State.Pid)
	r.await(t, member.ID, member.State.Pid)
	want := Container{ID: web.ID, Name: "pause-0", Labels: web.Config.Labels, Pid: web.State.Pid}
	r.mu.Lock()
	if i := slices.IndexFunc(r.told, func(c Container) bool { return c.ID == web.ID }); fmt.Sprint(r.told[i]) != fmt.Sprint(want) {
		t.Errorf("told %+v, want %+v", r.told[i], want)
	}
	r.mu.Unlock()

	happens(f, events.ActionDie, fakedocker.Stopped(web, 0))
	r.await(t, web.ID, 0)
	again := fakedocker.Container(0, "", arn)
	again.State.Pid = 99
	happens(f, events.ActionStart, again)
	r.await(t, web.ID, 99)
	f.Remove(member.ID)
	r.await(t, member.ID, 0)
	if pids := r.pids(old.ID); pids != nil {
		t.Errorf("of one that had ended before it is told %v", pids)
	}
	happens(f, "died", old) // Podman's word
	r.await(t, old.ID, 0)
	r.forget()
	x.Recheck(old.ID)
	r.await(t, old.ID, 0)

	r.forget()
	late := watch(t, x)
	if pids := late.pids(web.ID); !slices.Equal(pids, []int{99}) || late.listed != 1 {
		t.Errorf("one that watches late is told %v and %d lists, want what runs and one", pids, late.listed)
	}
	if r.listed > 0 {
		t.Error("there are two watchers")
	}
}

// A daemon that tells of nothing is asked again and again what runs.
func TestContainersAreLookedAtWithoutAnEvent(t *testing.T) {
	t.Parallel()
	web := fakedocker.Container(0, "", arn)
	f := fakedocker.T(t)
	f.Keep(web)
	f.Serve(t)
	x := newIndex(t, f)
	x.times.resync = time.Millisecond
	r := watch(t, x)
	run(t, x)
	await(t, "what runs to be told of", func() error {
		lists, told := f.Count("/containers/json"), len(r.pids(web.ID))
		r.mu.Lock()
		defer r.mu.Unlock()
		if lists < 3 || told < 3 || r.listed < 3 {
			return fmt.Errorf("%d lists, told %d times and of %d lists, want 3", lists, told, r.listed)
		}
		return nil
	})
}

// A daemon that comes back has what runs told anew, and its loss is told once.
func TestAWatcherIsToldOfTheDaemonsLoss(t *testing.T) {
	t.Parallel()
	web := fakedocker.Container(0, "", arn)
	f := fakedocker.T(t)
	f.Keep(web)
	f.Serve(t)
	x := newIndex(t, f)
	r := watch(t, x)
	run(t, x)
	r.await(t, web.ID, web.State.Pid)
	f.Stop()
	await(t, "the loss", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.lost) == 0 {
			return fmt.Errorf("not told")
		}
		return nil
	})
	late := watch(t, x)
	if len(late.lost) != 1 || !strings.Contains(late.lost[0].Error(), ecs.ErrDockerUnavailable.Error()) {
		t.Errorf("one that watches late is told of the losses %v, want one", late.lost)
	}
	f.Serve(t)
	late.await(t, web.ID, web.State.Pid)
}

// A task's container that starts is inspected at once, though the daemon does not answer
// about two thousand others, eight of which started before.
func TestAStartDoesNotWaitForOtherInspections(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	for n := range 2000 {
		f.Keep(fakedocker.Container(n, "", ""))
	}
	web := fakedocker.Container(5000, "", arn)
	f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
		return kind == "inspect" && !strings.Contains(r.URL.Path, web.ID) && fakedocker.Hang(kind, w, r)
	})
	f.Serve(t)
	x := newIndex(t, f)
	x.times.call = time.Minute
	r := watch(t, x)
	run(t, x)
	await(t, "the connection", connected(x))
	for n := range 8 {
		happens(f, events.ActionStart, fakedocker.Container(n, "", ""))
	}
	await(t, "eight that hang", func() error {
		if n := f.Count("inspect"); n < 8 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	start := time.Now()
	happens(f, events.ActionStart, web)
	r.await(t, web.ID, web.State.Pid)
	took := time.Since(start)
	t.Logf("told after %v", took)
	if took > 5*time.Second {
		t.Errorf("told after %v", took)
	}
}

// What changes of a container without its process is not told: whoever attaches has nothing
// to do then.
func TestAWatcherIsNotToldOfOtherChanges(t *testing.T) {
	t.Parallel()
	web := fakedocker.Container(0, "", arn)
	f, x := indexOf(t, web)
	await(t, "the connection", connected(x))
	r := watch(t, x)
	r.await(t, web.ID, web.State.Pid)
	r.forget()
	inspections := f.Count("inspect")
	happens(f, events.ActionHealthStatus, web)
	await(t, "the inspection", func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if f.Count("inspect") == inspections || len(x.backlog.inspections) > 0 {
			return fmt.Errorf("not over")
		}
		return nil
	})
	if pids := r.pids(web.ID); pids != nil {
		t.Errorf("told %v", pids)
	}
}
