package ecs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const taskARN = "arn:aws:ecs:us-west-2:123456789012:task/default/web"

func second(n int64) time.Time { return time.Unix(1700000000+n, 0).UTC() }

// member is a container of the second n, which joins the container named if any.
func member(id string, n int64, known Status, joins string) *Container {
	c := &Container{ID: id, Name: id, DockerName: id, Known: known, Joins: joins, Created: second(n)}
	if known == StatusStopped {
		code := int(n)
		c.ExitCode, c.Finished = &code, second(n+100)
	}
	return c
}

// labelled adds labels to a container.
func labelled(c *Container, labels ...string) *Container {
	c.Labels = make(map[string]string)
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		c.Labels[k] = v
	}
	return c
}

func TestNewTaskStatuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		owner   string
		members []*Container
		// want is each container in order, as ID:desired:known with a * for a pause container,
		// and the task's desired and known status at the end.
		want string
	}{
		"all run": {
			"pause", []*Container{member("app", 2, StatusRunning, "pause"), member("pause", 1, StatusRunning, "")},
			"pause*:RESOURCES_PROVISIONED:RESOURCES_PROVISIONED app:RUNNING:RUNNING RUNNING:RUNNING",
		},
		"the pause container is first, though it came last": {
			"pause", []*Container{member("app", 1, StatusRunning, "pause"), member("pause", 9, StatusRunning, "")},
			"pause*:RESOURCES_PROVISIONED:RESOURCES_PROVISIONED app:RUNNING:RUNNING RUNNING:RUNNING",
		},
		"the others by creation, then by ID": {
			"pause", []*Container{
				member("b", 5, StatusRunning, "pause"), member("c", 4, StatusRunning, "pause"),
				member("a", 5, StatusRunning, "pause"), member("pause", 1, StatusRunning, ""),
			},
			"pause*:RESOURCES_PROVISIONED:RESOURCES_PROVISIONED c:RUNNING:RUNNING a:RUNNING:RUNNING b:RUNNING:RUNNING RUNNING:RUNNING",
		},
		"one is made and not started": {
			"pause", []*Container{member("pause", 1, StatusRunning, ""), member("app", 2, StatusCreated, "pause")},
			"pause*:RESOURCES_PROVISIONED:RESOURCES_PROVISIONED app:RUNNING:CREATED RUNNING:CREATED",
		},
		"one has stopped": {
			"pause", []*Container{member("pause", 1, StatusRunning, ""), member("app", 2, StatusStopped, "pause")},
			"pause*:RESOURCES_PROVISIONED:RESOURCES_PROVISIONED app:STOPPED:STOPPED RUNNING:RUNNING",
		},
		"all have stopped": {
			"pause", []*Container{member("pause", 1, StatusStopped, ""), member("app", 2, StatusStopped, "pause")},
			"pause*:STOPPED:STOPPED app:STOPPED:STOPPED STOPPED:STOPPED",
		},
		"the pause container has stopped": {
			"pause", []*Container{member("pause", 1, StatusStopped, ""), member("app", 2, StatusRunning, "pause")},
			"pause*:STOPPED:STOPPED app:RUNNING:RUNNING STOPPED:RUNNING",
		},
		"the pause container is made and not started": {
			"pause", []*Container{member("pause", 1, StatusCreated, "")},
			"pause*:RESOURCES_PROVISIONED:CREATED STOPPED:CREATED",
		},
		"a lone application container is no pause container": {
			"app", []*Container{member("app", 1, StatusRunning, "")},
			"app:RUNNING:RUNNING RUNNING:RUNNING",
		},
		"an owner is a pause container once it is shared": {
			"app", []*Container{member("app", 1, StatusRunning, ""), member("debug", 2, StatusRunning, "app")},
			"app*:RESOURCES_PROVISIONED:RESOURCES_PROVISIONED debug:RUNNING:RUNNING RUNNING:RUNNING",
		},
		"without an owner the task runs while one of it does": {
			"", []*Container{member("b", 2, StatusStopped, ""), member("a", 1, StatusRunning, "")},
			"a:RUNNING:RUNNING b:STOPPED:STOPPED RUNNING:RUNNING",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			task := NewTask(&Binding{}, test.owner, test.members, nil)
			if got := outline(task); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestNewTaskLeavesItsContainersAsTheyAre(t *testing.T) {
	t.Parallel()
	pause := member("pause", 1, StatusRunning, "")
	NewTask(&Binding{}, "pause", []*Container{pause}, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
	if pause.Pause || pause.Known != StatusRunning || pause.Desired != "" || pause.Addrs != nil {
		t.Errorf("changed to %+v", pause)
	}
}

func outline(task *Task) string {
	var s []string
	for _, c := range task.Containers {
		star := ""
		if c.Pause {
			star = "*"
		}
		s = append(s, fmt.Sprintf("%s%s:%s:%s", c.ID, star, c.Desired, c.Known))
	}
	return strings.Join(append(s, fmt.Sprintf("%s:%s", task.Desired, task.Known)), " ")
}

func TestNewTaskIdentity(t *testing.T) {
	t.Parallel()
	pause := func(labels ...string) *Container { return labelled(member("pause", 1, StatusRunning, ""), labels...) }
	app := func(labels ...string) *Container {
		return labelled(member("app", 2, StatusRunning, "pause"), labels...)
	}
	tests := map[string]struct {
		binding    Binding
		pause, app *Container
		want       Task
	}{
		"the pause container's labels": {
			Binding{}, pause(LabelTaskARN+"="+taskARN, LabelCluster+"=c", LabelFamily+"=f", LabelRevision+"=7"), app(LabelCluster + "=other"),
			Task{ARN: taskARN, Cluster: "c", Family: "f", Revision: "7"},
		},
		"the first member's where the pause container has none": {
			Binding{}, pause(LabelCluster + "=c"), app(LabelTaskARN+"="+taskARN, LabelCluster+"=other", LabelFamily+"=f"),
			Task{ARN: taskARN, Cluster: "c", Family: "f"},
		},
		"the binding's labels before all": {
			Binding{Labels: map[string]string{LabelTaskARN: taskARN, LabelCluster: "b", LabelFamily: "bf", LabelRevision: "1"}},
			pause(LabelTaskARN+"=p", LabelCluster+"=p", LabelFamily+"=p", LabelRevision+"=2"), app(),
			Task{ARN: taskARN, Cluster: "b", Family: "bf", Revision: "1"},
		},
		"the binding's ARN before its labels": {
			Binding{TaskARN: taskARN, Labels: map[string]string{LabelTaskARN: "label"}}, pause(), app(),
			Task{ARN: taskARN},
		},
		"the pause container's ID where nothing names the task": {Binding{}, pause(), app(), Task{ARN: "pause"}},
		"limits and pulls": {
			Binding{Labels: map[string]string{
				LabelTaskCPU: "0.25", LabelTaskMemory: "512",
				LabelPullStarted: "2023-11-14T22:13:20Z", LabelPullStopped: "2023-11-15T00:13:21.5+02:00",
			}},
			pause(LabelTaskCPU + "=4"), app(),
			Task{ARN: "pause", CPU: 0.25, Memory: 512, PullStarted: second(0), PullStopped: second(1).Add(500 * time.Millisecond)},
		},
		"values that cannot be read": {
			Binding{Labels: map[string]string{LabelTaskCPU: "NaN", LabelTaskMemory: "-1", LabelPullStarted: "yesterday"}}, pause(), app(),
			Task{ARN: "pause"},
		},
		"no limit": {
			Binding{Labels: map[string]string{LabelTaskCPU: "-2", LabelTaskMemory: "0"}}, pause(), app(LabelTaskCPU + "=+Inf"),
			Task{ARN: "pause"},
		},
		"tags of all, the binding's before the pause container's before the others'": {
			Binding{Labels: map[string]string{LabelTagPrefix + "a": "binding"}},
			pause(LabelTagPrefix+"a=pause", LabelTagPrefix+"b=pause"), app(LabelTagPrefix+"b=app", LabelTagPrefix+"c=app", "taskmeta.tags=none"),
			Task{ARN: "pause", Tags: map[string]string{"a": "binding", "b": "pause", "c": "app"}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := NewTask(&test.binding, "pause", []*Container{test.app, test.pause}, nil)
			got.Containers, got.Desired, got.Known = nil, "", ""
			got.PullStarted, got.PullStopped = got.PullStarted.UTC(), got.PullStopped.UTC()
			if g, w := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", test.want); g != w {
				t.Errorf("got  %s\nwant %s", g, w)
			}
		})
	}
}

func TestNewTaskExecutionStopped(t *testing.T) {
	t.Parallel()
	restarted := member("again", 1, StatusRunning, "pause")
	restarted.Finished = second(1)
	tests := map[string]struct {
		members []*Container
		want    time.Time
	}{
		"none has stopped": {[]*Container{member("a", 1, StatusRunning, "")}, time.Time{}},
		"the first that did": {
			[]*Container{member("a", 2, StatusStopped, ""), member("b", 1, StatusStopped, ""), member("c", 0, StatusRunning, "")}, second(101),
		},
		"one that the task can do without": {
			[]*Container{labelled(member("a", 1, StatusStopped, ""), LabelEssential+"=false"), member("b", 2, StatusStopped, "")}, second(102),
		},
		"one that runs again": {[]*Container{restarted}, time.Time{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := NewTask(&Binding{}, "", test.members, nil).ExecutionStopped; !got.Equal(test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestNewTaskAddrs(t *testing.T) {
	t.Parallel()
	addrs := func(text string) (addrs []netip.Addr) {
		for _, a := range strings.Fields(text) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		return addrs
	}
	b := Binding{Addrs: []netip.Prefix{
		netip.MustParsePrefix("169.254.172.7/22"), netip.MustParsePrefix("fd00:ec2::7/112"),
	}}
	tests := map[string]struct{ namespace, passed, want string }{
		"ours where there is no other":      {"169.254.172.7 fd00:ec2::7 fe80::1 127.0.0.1", "", "169.254.172.7 fd00:ec2::7"},
		"ours where the namespace is gone":  {"", "", "169.254.172.7 fd00:ec2::7"},
		"the namespace's others":            {"169.254.172.7 10.0.0.7 fd00:ec2::7 2001:db8::7", "", "10.0.0.7 2001:db8::7"},
		"the runtime's too, each once":      {"10.0.0.7", "192.0.2.1 10.0.0.7", "10.0.0.7 192.0.2.1"},
		"the runtime's where none is there": {"169.254.172.7", "192.0.2.1", "192.0.2.1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := b
			b.TaskAddrs = addrs(test.passed)
			members := []*Container{member("pause", 1, StatusRunning, ""), member("app", 2, StatusRunning, "pause")}
			for _, c := range NewTask(&b, "pause", members, addrs(test.namespace)).Containers {
				if !slices.Equal(c.Addrs, addrs(test.want)) {
					t.Errorf("%s: %v, want %s", c.ID, c.Addrs, test.want)
				}
			}
		})
	}
}
