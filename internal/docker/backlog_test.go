package docker

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

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
			f.Put(events.ActionUpdate, fakedocker.Stopped(pause, 1)) // of an end the event would tell
			f.Put(events.ActionUpdate, fakedocker.Stopped(other, 1))
			awaitTask(t, x, bindingOf(other.ID), "the other task", func(task *ecs.Task) bool { return task.Known == ecs.StatusStopped })
			if mustTask(t, x, b) != task {
				t.Error("the task has changed")
			}
			f.Replace(nil)
			awaitTask(t, x, b, "the recovery", func(task *ecs.Task) bool { return task.Known == ecs.StatusStopped })
		})
	}
}
