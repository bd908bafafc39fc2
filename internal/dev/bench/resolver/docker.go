package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

// inspectTime is what the daemon below takes for one inspection, about as a real one does.
const inspectTime = 2 * time.Millisecond

// newDaemon makes a daemon with that many tasks of that many containers each, all of them
// in the network namespace of the process pid. The first of each is its pause container.
// Nothing ever happens to them. They are more than a machine of two processors can start.
func newDaemon(socket string, tasks, each, pid int) *fakedocker.Daemon {
	d := fakedocker.New(socket)
	for n := range tasks * each {
		d.Keep(newContainer(n/each, n%each, pid))
	}
	d.Replace(func(kind string, _ http.ResponseWriter, r *http.Request) bool {
		if kind == "inspect" {
			pause(r.Context(), inspectTime)
		}
		return false
	})
	return d
}

func taskARN(task int) string {
	return fmt.Sprintf("arn:aws:ecs:us-west-2:123456789012:task/default/%032x", task)
}

// containerID is the ID of a task's nth container, 0 being the pause container.
func containerID(task, n int) string { return fakedocker.ID(task*100 + n) }

func newContainer(task, n, pid int) *container.InspectResponse {
	name, pauseID := "~internal~ecs~pause", ""
	if n > 0 {
		name, pauseID = "app"+strconv.Itoa(n), containerID(task, 0)
	}
	c := fakedocker.Container(task*100+n, pauseID, taskARN(task))
	c.Name = fmt.Sprintf("/ecs-web-7-%s-%d", strings.Trim(name, "~"), task)
	c.State.Pid = pid
	c.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "STAGE=production"}
	c.Config.Labels[ecs.LabelContainerName] = name
	return c
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
