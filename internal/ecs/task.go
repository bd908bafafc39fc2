package ecs

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// EndpointAddr is the address that a task's containers ask, and EndpointPort its port.
var EndpointAddr = netip.AddrFrom4([4]byte{169, 254, 170, 2})

const EndpointPort = 80

// The labels that the ECS agent gives to the containers it starts, and ours beside them.
const (
	LabelCluster       = "com.amazonaws.ecs.cluster"
	LabelTaskARN       = "com.amazonaws.ecs.task-arn"
	LabelFamily        = "com.amazonaws.ecs.task-definition-family"
	LabelRevision      = "com.amazonaws.ecs.task-definition-version"
	LabelContainerName = "com.amazonaws.ecs.container-name"

	LabelTaskCPU     = "taskmeta.task-cpu"        // vCPU, a decimal fraction
	LabelTaskMemory  = "taskmeta.task-memory"     // MiB
	LabelPullStarted = "taskmeta.pull-started-at" // RFC 3339
	LabelPullStopped = "taskmeta.pull-stopped-at" // RFC 3339
	LabelEssential   = "taskmeta.essential"
	LabelTagPrefix   = "taskmeta.tag."
)

// A Status is a state in the words of the ECS agent.
type Status string

// Statuses in the order in which a container passes through them.
const (
	StatusNone                 Status = "NONE"
	StatusPulled               Status = "PULLED"
	StatusCreated              Status = "CREATED"
	StatusRunning              Status = "RUNNING"
	StatusResourcesProvisioned Status = "RESOURCES_PROVISIONED"
	StatusStopped              Status = "STOPPED"
)

// A Task is a group of containers that share one network namespace. It is made whole
// and never changed afterwards: a changed task is another value.
type Task struct {
	// ARN is the pause container's ID where nothing names the task.
	Cluster, ARN, Family, Revision string
	Desired, Known                 Status
	// Containers stand pause first, then by time of creation, then by ID.
	Containers []Container
	// CPU is in vCPU and Memory in MiB; 0 is "not limited".
	CPU    float64
	Memory uint64
	// PullStarted, PullStopped and ExecutionStopped are zero where unknown.
	PullStarted, PullStopped, ExecutionStopped time.Time
	Tags                                       map[string]string
}

// A Container is one of a task's containers as Docker describes it.
type Container struct {
	ID         string // full Docker ID
	Name       string // in the task
	DockerName string // without the slash
	Image      string // as it was created with
	ImageID    string
	Ports      []Port
	Labels     map[string]string

	Desired, Known Status
	// ExitCode is nil until the container has exited.
	ExitCode *int
	// CPU is in shares, Memory in MiB; 0 is "not limited".
	CPU, Memory uint64
	// Created, Started and Finished are zero for "not yet".
	Created, Started, Finished time.Time
	// Joins is the ID of the container whose network namespace it shares, empty if it has
	// one of its own.
	Joins string
	// Pause marks the container that owns the task's network namespace for others.
	Pause bool
	// CanChangeHostNetwork marks one that the guard of the task's port does not hold: a capability
	// of its lets it change the host's network.
	CanChangeHostNetwork bool
	// Addrs are the addresses the task is reached at.
	Addrs   []netip.Addr
	Health  *Health // nil while unknown
	Volumes []Volume
}

// A Port is one that the container exposes. In a task's network mode the host's port is
// the container's.
type Port struct {
	Number   uint16
	Protocol string
}

// Health is the verdict of a container's last health check.
type Health struct {
	Status   string // HEALTHY or UNHEALTHY
	Since    time.Time
	ExitCode int
	Output   string
}

// A Volume is one mount of a container.
type Volume struct {
	DockerName  string // empty for a bind mount
	Source      string
	Destination string
}

// Counters are a network interface's since it was made, named as in Docker's statistics.
type Counters struct {
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxErrors  uint64 `json:"rx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxErrors  uint64 `json:"tx_errors"`
	TxDropped uint64 `json:"tx_dropped"`
}

// NewTask puts the task of a binding together from its containers, which it copies. owner
// is the ID of the one whose network namespace the task lives in, empty if that is none of
// them, and addrs are that namespace's addresses. Of the containers it decides Pause,
// Addrs, Desired and, for a pause container, Known.
func NewTask(b *Binding, owner string, members []*Container, addrs []netip.Addr) *Task {
	t := &Task{Containers: make([]Container, 0, len(members)), Known: StatusStopped}
	addrs = b.reachedAt(addrs)
	for _, m := range members {
		c := *m
		c.Addrs = addrs
		c.Pause = c.ID == owner && isPause(m, members)
		if c.Known != StatusStopped {
			c.Desired = StatusRunning
			t.Known = least(t.Known, c.Known)
		} else {
			c.Desired = StatusStopped
		}
		if c.Pause && c.Known != StatusStopped {
			c.Desired = StatusResourcesProvisioned
		}
		if c.Pause && c.Known == StatusRunning {
			c.Known = StatusResourcesProvisioned
		}
		t.Containers = append(t.Containers, c)
	}
	slices.SortFunc(t.Containers, func(a, b Container) int {
		if (a.ID == owner) != (b.ID == owner) {
			if a.ID == owner {
				return -1
			}
			return 1
		}
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	t.Desired = desired(t, owner)
	t.identify(b, owner)
	t.ExecutionStopped = executionStopped(t.Containers)
	return t
}

// isPause reports whether the owner of the task's network namespace is there for that: it
// holds it for another container, or is named for it.
func isPause(owner *Container, members []*Container) bool {
	if strings.Contains(owner.Name, "pause") || strings.Contains(owner.DockerName, "pause") {
		return true
	}
	return slices.ContainsFunc(members, func(c *Container) bool { return c.Joins == owner.ID })
}

// least returns the status that a container passes through first.
func least(a, b Status) Status {
	order := []Status{StatusNone, StatusPulled, StatusCreated, StatusRunning, StatusResourcesProvisioned, StatusStopped}
	return order[min(slices.Index(order, a), slices.Index(order, b))]
}

// desired is RUNNING while the owner of the namespace runs, or the task where it has none.
func desired(t *Task, owner string) Status {
	running := t.Known != StatusStopped
	if first := t.Containers; len(first) > 0 && first[0].ID == owner {
		running = first[0].Known == StatusRunning || first[0].Known == StatusResourcesProvisioned
	}
	if running {
		return StatusRunning
	}
	return StatusStopped
}

// identify fills what labels tell: the binding's own win, then the owner's of the
// namespace, then those of the first container that has any. A value that cannot be read
// counts as none.
func (t *Task) identify(b *Binding, owner string) {
	label := func(key string) string {
		if v := b.Labels[key]; v != "" {
			return v
		}
		for i := range t.Containers {
			if v := t.Containers[i].Labels[key]; v != "" {
				return v
			}
		}
		return ""
	}
	t.ARN = cmp.Or(b.TaskARN, label(LabelTaskARN), owner)
	t.Cluster, t.Family, t.Revision = label(LabelCluster), label(LabelFamily), label(LabelRevision)
	if cpu, err := strconv.ParseFloat(label(LabelTaskCPU), 64); err == nil && cpu > 0 && !math.IsInf(cpu, 0) {
		t.CPU = cpu
	}
	t.Memory, _ = strconv.ParseUint(label(LabelTaskMemory), 10, 64)
	t.PullStarted, _ = time.Parse(time.RFC3339, label(LabelPullStarted))
	t.PullStopped, _ = time.Parse(time.RFC3339, label(LabelPullStopped))

	tags := func(labels map[string]string) {
		for k, v := range labels {
			if k, ok := strings.CutPrefix(k, LabelTagPrefix); ok {
				if t.Tags == nil {
					t.Tags = make(map[string]string)
				}
				t.Tags[k] = v
			}
		}
	}
	for i := range t.Containers {
		tags(t.Containers[len(t.Containers)-1-i].Labels)
	}
	tags(b.Labels)
}

// executionStopped is when the first container that the task cannot do without finished.
func executionStopped(containers []Container) (first time.Time) {
	for i := range containers {
		c := &containers[i]
		if c.Known != StatusStopped || c.Finished.IsZero() || c.Labels[LabelEssential] == "false" {
			continue
		}
		if first.IsZero() || c.Finished.Before(first) {
			first = c.Finished
		}
	}
	return first
}

// reachedAt returns the global ones of a namespace's addresses and of those that the
// runtime passed, without the binding's own, or the binding's own if that leaves none.
func (b *Binding) reachedAt(namespace []netip.Addr) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range slices.Concat(namespace, b.TaskAddrs) {
		if a.IsGlobalUnicast() && !b.Has(a) && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	if addrs == nil {
		for _, p := range b.Addrs {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs
}
