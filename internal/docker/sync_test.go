package docker

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
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

// A container that the guard does not hold is known as such, and warned of once: again only
// after it has been held, and not for a container of no task.
func TestAContainerThatCanChangeTheHostsNetwork(t *testing.T) {
	t.Parallel()
	f := fakedocker.T(t)
	pause, other := fakedocker.Container(0, "", arn), fakedocker.Container(1, "", "")
	member := fakedocker.Container(2, pause.ID, "")
	f.Keep(pause, other, member)
	f.Serve(t)
	var log bytes.Buffer
	x := newIndex(t, f)
	x.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	x.cfg.CanChangeHostNetwork = func(pid int) bool { return pid != pause.State.Pid }
	stop := run(t, x)
	await(t, "the connection", connected(x))
	task := mustTask(t, x, bindingOf(pause.ID))
	for _, c := range task.Containers {
		if want := c.ID == member.ID; c.CanChangeHostNetwork != want {
			t.Errorf("%s can change the host's network: %t, want %t", c.DockerName, c.CanChangeHostNetwork, want)
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
