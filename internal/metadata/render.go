package metadata

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"taskmeta/internal/ecs"
)

// The shapes of the v2 API. Names, order and omissions are the ECS agent's, because SDKs
// and monitoring agents decode its answers as they are. Like the agent's, a body is what
// json.Marshal gives: &, < and > escaped, and no newline at its end.
type (
	taskReply struct {
		Cluster               string            `json:"Cluster"`
		TaskARN               string            `json:"TaskARN"`
		Family                string            `json:"Family"`
		Revision              string            `json:"Revision"`
		DesiredStatus         ecs.Status        `json:"DesiredStatus,omitempty"`
		KnownStatus           ecs.Status        `json:"KnownStatus"`
		Containers            []containerReply  `json:"Containers,omitempty"`
		Limits                taskLimits        `json:"Limits,omitzero"`
		PullStartedAt         time.Time         `json:"PullStartedAt,omitzero"`
		PullStoppedAt         time.Time         `json:"PullStoppedAt,omitzero"`
		ExecutionStoppedAt    time.Time         `json:"ExecutionStoppedAt,omitzero"`
		AvailabilityZone      string            `json:"AvailabilityZone,omitempty"`
		TaskTags              map[string]string `json:"TaskTags,omitempty"`
		ContainerInstanceTags map[string]string `json:"ContainerInstanceTags,omitempty"`
	}

	containerReply struct {
		DockerID      string            `json:"DockerId"`
		Name          string            `json:"Name"`
		DockerName    string            `json:"DockerName"`
		Image         string            `json:"Image"`
		ImageID       string            `json:"ImageID"`
		Ports         []portReply       `json:"Ports,omitempty"`
		Labels        map[string]string `json:"Labels,omitempty"`
		DesiredStatus ecs.Status        `json:"DesiredStatus"`
		KnownStatus   ecs.Status        `json:"KnownStatus"`
		ExitCode      *int              `json:"ExitCode,omitempty"`
		Limits        containerLimits   `json:"Limits"`
		CreatedAt     time.Time         `json:"CreatedAt,omitzero"`
		StartedAt     time.Time         `json:"StartedAt,omitzero"`
		FinishedAt    time.Time         `json:"FinishedAt,omitzero"`
		Type          string            `json:"Type"`
		Networks      []networkReply    `json:"Networks"`
		Health        *healthReply      `json:"Health,omitempty"`
		Volumes       []volumeReply     `json:"Volumes,omitempty"`
	}

	// taskLimits are in vCPU and MiB; what is not limited is left out.
	taskLimits struct {
		CPU    float64 `json:"CPU,omitempty"`
		Memory uint64  `json:"Memory,omitempty"`
	}

	// containerLimits are in CPU shares and MiB, and always written.
	containerLimits struct {
		CPU    uint64 `json:"CPU"`
		Memory uint64 `json:"Memory"`
	}

	portReply struct {
		ContainerPort uint16 `json:"ContainerPort,omitempty"`
		Protocol      string `json:"Protocol,omitempty"`
		HostPort      uint16 `json:"HostPort,omitempty"`
	}

	networkReply struct {
		NetworkMode   string       `json:"NetworkMode"`
		IPv4Addresses []netip.Addr `json:"IPv4Addresses,omitempty"`
		IPv6Addresses []netip.Addr `json:"IPv6Addresses,omitempty"`
	}

	healthReply struct {
		Status      string    `json:"status"`
		StatusSince time.Time `json:"statusSince,omitzero"`
		ExitCode    int       `json:"exitCode,omitempty"`
		Output      string    `json:"output,omitempty"`
	}

	volumeReply struct {
		DockerName  string `json:"DockerName,omitempty"`
		Source      string `json:"Source,omitempty"`
		Destination string `json:"Destination,omitempty"`
	}
)

// networkMode is the only mode in which a task has a namespace, and so an address, of
// its own.
const networkMode = "awsvpc"

// minShares is the least that the kernel accepts as CPU shares; the agent reports it for
// a container without a reservation.
const minShares = 2

func newTaskReply(t *ecs.Task, zone string) taskReply {
	r := taskReply{
		Cluster:            t.Cluster,
		TaskARN:            t.ARN,
		Family:             t.Family,
		Revision:           t.Revision,
		DesiredStatus:      t.Desired,
		KnownStatus:        t.Known,
		Limits:             taskLimits{CPU: t.CPU, Memory: t.Memory},
		PullStartedAt:      t.PullStarted.UTC(),
		PullStoppedAt:      t.PullStopped.UTC(),
		ExecutionStoppedAt: t.ExecutionStopped.UTC(),
		AvailabilityZone:   zone,
	}
	for i := range t.Containers {
		r.Containers = append(r.Containers, newContainerReply(&t.Containers[i]))
	}
	return r
}

func newContainerReply(c *ecs.Container) containerReply {
	r := containerReply{
		DockerID:      c.ID,
		Name:          c.Name,
		DockerName:    c.DockerName,
		Image:         c.Image,
		ImageID:       c.ImageID,
		Labels:        c.Labels,
		DesiredStatus: c.Desired,
		KnownStatus:   c.Known,
		ExitCode:      c.ExitCode,
		Limits:        containerLimits{CPU: max(c.CPU, minShares), Memory: c.Memory},
		CreatedAt:     c.Created.UTC(),
		StartedAt:     c.Started.UTC(),
		FinishedAt:    c.Finished.UTC(),
		Type:          "NORMAL",
	}
	if c.Pause {
		r.Type = "CNI_PAUSE"
	}
	for _, p := range c.Ports {
		r.Ports = append(r.Ports, portReply{ContainerPort: p.Number, Protocol: p.Protocol, HostPort: p.Number})
	}
	network := networkReply{NetworkMode: networkMode}
	for _, a := range c.Addrs {
		if a.Is4() {
			network.IPv4Addresses = append(network.IPv4Addresses, a)
		} else {
			network.IPv6Addresses = append(network.IPv6Addresses, a)
		}
	}
	r.Networks = []networkReply{network}
	if h := c.Health; h != nil {
		r.Health = &healthReply{Status: h.Status, StatusSince: h.Since.UTC(), ExitCode: h.ExitCode, Output: h.Output}
	}
	for _, v := range c.Volumes {
		r.Volumes = append(r.Volumes, volumeReply(v))
	}
	return r
}

// A rendering is the bodies for one task as it is at present. Each is made when it is first
// asked for, and kept: for ten containers that takes 0.2 ms (BenchmarkRender), and all else
// in the handler 2 µs (BenchmarkServeHTTP).
type rendering struct {
	task         *ecs.Task
	zone         string
	instanceTags map[string]string
	bodies       []atomic.Pointer[[]byte] // the task, with its tags, and each of task.Containers
}

func newRendering(t *ecs.Task, zone string, instanceTags map[string]string) *rendering {
	return &rendering{t, zone, instanceTags, make([]atomic.Pointer[[]byte], 2+len(t.Containers))}
}

func (r *rendering) metadata() ([]byte, error) {
	return r.body(0, func() any { return newTaskReply(r.task, r.zone) })
}

func (r *rendering) withTags() ([]byte, error) {
	return r.body(1, func() any {
		reply := newTaskReply(r.task, r.zone)
		reply.TaskTags, reply.ContainerInstanceTags = r.task.Tags, r.instanceTags
		return reply
	})
}

func (r *rendering) container(i int) ([]byte, error) {
	return r.body(2+i, func() any { return newContainerReply(&r.task.Containers[i]) })
}

// body returns the body at i, made of reply if it is the first time. Two that come at once
// may both make it.
func (r *rendering) body(i int, reply func() any) ([]byte, error) {
	if made := r.bodies[i].Load(); made != nil {
		return *made, nil
	}
	body, err := json.Marshal(reply())
	if err != nil {
		return nil, fmt.Errorf("rendering a reply: %w", err)
	}
	r.bodies[i].Store(&body)
	return body, nil
}

// statsBody is the object that maps the ID of each container to its statistics, or to null
// where there are none. They stay byte for byte as they came: json.Marshal would compact them
// and escape <, > and &.
func statsBody(containers []ecs.Container, stats map[string]json.RawMessage) []byte {
	body := []byte{'{'}
	for i, c := range containers {
		if i > 0 {
			body = append(body, ',')
		}
		body = strconv.AppendQuote(body, c.ID)
		body = append(body, ':')
		body = append(body, orNull(stats[c.ID])...)
	}
	return append(body, '}')
}

func orNull(v json.RawMessage) json.RawMessage {
	if v == nil {
		return json.RawMessage("null")
	}
	return v
}
