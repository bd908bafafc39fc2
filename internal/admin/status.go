package admin

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"taskmeta/internal/ecs"
)

// State is what the resolver knows of its host at one moment.
type State struct {
	// Bindings are all there are, or BindingsErr says why they can't be read.
	Bindings    []*ecs.Binding
	BindingsErr error
	// BindingsLoads is how often the file was loaded.
	BindingsLoads uint64
	// Bridge are the addresses of the bridge, each with the length of its subnet: the
	// gateways of the pools. A pool that no attachment holds an address of is known by it.
	Bridge []netip.Prefix
	Docker Docker
	Guard  Guard
}

// Docker is how the Docker daemon is followed.
type Docker struct {
	Connected bool `json:"connected"`
	// Since is when Connected became what it is.
	Since      time.Time `json:"since,omitzero"`
	Containers int       `json:"containers"`
	// Streams are the open ones of container statistics.
	Streams int    `json:"streams"`
	Events  uint64 `json:"events"`
	Resyncs uint64 `json:"resyncs"`
}

// Guard is what the watch over the bridge and the packet filter found.
type Guard struct {
	Repairs uint64 `json:"repairs"`
	// UnknownPorts are names of links on the bridge that belong to no attachment.
	UnknownPorts []string `json:"unknownPorts"`
}

// Status is what /status.json answers and the status page shows.
type Status struct {
	Time    time.Time `json:"time"`
	Host    string    `json:"host"`
	Version string    `json:"version"`
	// Instance is what this resolver alone answers to the question of `ecs-resolver status`.
	Instance string    `json:"instance"`
	Started  time.Time `json:"started"`
	Checks   []Finding `json:"checks"`
	Docker   Docker    `json:"docker"`
	Guard    Guard     `json:"guard"`

	Requests Traffic `json:"requests"`

	// BindingsKnown is false while the bindings file can't be read: Tasks are empty then.
	BindingsKnown bool   `json:"bindingsKnown"`
	BindingsLoads uint64 `json:"bindingsLoads"`
	Pools         []Pool `json:"pools"`
	Tasks         []Task `json:"tasks"`
}

// A Finding is what a [Check] found.
type Finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Problem is what is wrong and what to do, "" when OK.
	Problem string `json:"problem,omitempty"`
}

// A Pool is a subnet of which attachments are given addresses.
type Pool struct {
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
	Used    uint64       `json:"used"`
	Free    uint64       `json:"free"`
}

// The states of a [Task].
const (
	TaskPresent = "present" // a container of it runs, or did when Docker was last heard of
	TaskGone    = "gone"    // Docker knows no container of it that runs
	TaskUnknown = "unknown" // Docker can't be asked
)

// A Task is an attachment that holds addresses, with the containers behind it.
type Task struct {
	Addrs    []netip.Addr `json:"addresses"`
	State    string       `json:"state"`
	Attached time.Time    `json:"attachedAt"`
	ecs.Attachment
	// What follows is empty while no container of the task is known.
	Cluster    string      `json:"cluster,omitempty"`
	ARN        string      `json:"taskARN,omitempty"`
	Family     string      `json:"family,omitempty"`
	Revision   string      `json:"revision,omitempty"`
	Known      ecs.Status  `json:"knownStatus,omitempty"`
	Containers []Container `json:"containers"`
}

// A Container is one of a [Task].
type Container struct {
	ID     string     `json:"id"`
	Name   string     `json:"name"`
	Image  string     `json:"image"`
	Status ecs.Status `json:"status"`
	Pause  bool       `json:"pause"`
	// Health is "" where the container has no health check that has spoken yet.
	Health string `json:"health,omitempty"`
	// Uncontained is [ecs.Container.CanChangeHostNetwork].
	Uncontained bool `json:"uncontained,omitempty"`
}

// status is the state of everything now.
func (s *Server) status() Status {
	state := s.State()
	state.Bindings = slices.DeleteFunc(slices.Clone(state.Bindings), func(b *ecs.Binding) bool { return b.IsProbe() })
	status := Status{
		Time:          time.Now().UTC(),
		Host:          s.Host,
		Version:       s.Version,
		Instance:      s.Instance,
		Started:       s.Requests.start.UTC(),
		Checks:        s.findings(),
		Docker:        state.Docker,
		Guard:         Guard{state.Guard.Repairs, append([]string{}, state.Guard.UnknownPorts...)},
		Requests:      s.Requests.traffic(),
		BindingsKnown: state.BindingsErr == nil,
		BindingsLoads: state.BindingsLoads,
		Pools:         pools(state.Bridge, state.Bindings),
		Tasks:         make([]Task, 0, len(state.Bindings)),
	}
	status.Docker.Since = status.Docker.Since.UTC()
	for _, b := range state.Bindings {
		status.Tasks = append(status.Tasks, newTask(b, s.TaskOf(b), state.Docker.Connected))
	}
	return status
}

// gone is the number of tasks that hold an address though they are gone.
func (s *Status) gone() int {
	n := 0
	for i := range s.Tasks {
		if s.Tasks[i].State == TaskGone {
			n++
		}
	}
	return n
}

// Uncontained are the containers that are so, each after the name of its task.
func (s *Status) Uncontained() (names []string) {
	for i := range s.Tasks {
		for _, c := range s.Tasks[i].Containers {
			if c.Uncontained {
				names = append(names, cmp.Or(s.Tasks[i].Family, s.Tasks[i].Addrs[0].String())+"/"+c.Name)
			}
		}
	}
	return names
}

// newTask joins a binding with what Docker knows of its task, which is nil for nothing.
func newTask(b *ecs.Binding, known *ecs.Task, connected bool) Task {
	t := Task{
		Addrs:      make([]netip.Addr, len(b.Addrs)),
		State:      TaskPresent,
		Attached:   b.Created.UTC(),
		Attachment: b.Attachment,
		ARN:        b.TaskARN,
		Containers: []Container{},
	}
	for i, p := range b.Addrs {
		t.Addrs[i] = p.Addr()
	}
	switch {
	case known == nil && !connected:
		t.State = TaskUnknown
	case known == nil || known.Desired == ecs.StatusStopped:
		t.State = TaskGone
	}
	if known == nil {
		return t
	}
	t.Cluster, t.ARN, t.Family, t.Revision, t.Known = known.Cluster, known.ARN, known.Family, known.Revision, known.Known
	for i := range known.Containers {
		c := &known.Containers[i]
		of := Container{ID: c.ID, Name: c.Name, Image: c.Image, Status: c.Known, Pause: c.Pause, Uncontained: c.CanChangeHostNetwork}
		if c.Health != nil {
			of.Health = c.Health.Status
		}
		t.Containers = append(t.Containers, of)
	}
	return t
}

// pools are the subnets of the bridge and of what is bound, in order, and how full they
// are. An address that was recorded without its subnet makes no pool, but counts in one
// that has it.
func pools(bridge []netip.Prefix, bindings []*ecs.Binding) []Pool {
	known := make(map[netip.Prefix]ecs.Pool)
	add := func(at netip.Prefix, gateway netip.Addr) {
		if _, ok := known[at.Masked()]; ok {
			return
		}
		if p, err := ecs.NewPool(at.Masked(), gateway); err == nil {
			known[p.Subnet] = p
		}
	}
	for _, at := range bridge {
		add(at, at.Addr())
	}
	for _, b := range bindings {
		for _, at := range b.Addrs {
			add(at, netip.Addr{})
		}
	}
	list := make([]Pool, 0, len(known))
	for _, p := range slices.SortedFunc(maps.Values(known), func(a, b ecs.Pool) int {
		return cmp.Or(a.Subnet.Addr().Compare(b.Subnet.Addr()), cmp.Compare(a.Subnet.Bits(), b.Subnet.Bits()))
	}) {
		var used uint64
		for _, b := range bindings {
			for _, at := range b.Addrs {
				if p.Grantable(at.Addr()) {
					used++
				}
			}
		}
		list = append(list, Pool{Subnet: p.Subnet, Gateway: p.Gateway, Used: used, Free: p.Count() - used})
	}
	return list
}
