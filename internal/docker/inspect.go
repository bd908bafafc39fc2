package docker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/docker/docker/api/types/container"

	"taskmeta/internal/ecs"
)

// intern returns the one copy of s that all containers have: of ten thousand, most have
// their images and labels from a few definitions.
func intern(s string) string { return unique.Make(s).Value() }

func internLabels(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return labels
	}
	all := make(map[string]string, len(labels))
	for key, value := range labels {
		all[intern(key)] = intern(value)
	}
	return all
}

// summary is what whoever attaches containers is told of an inspected one.
func (e *entry) summary() Container {
	return Container{
		ID: e.id, Name: e.container.DockerName, Labels: e.container.Labels,
		Pid: e.pid, Joins: e.joins, HostNetwork: e.host,
	}
}

func newEntry(id string, labels map[string]string, mode container.NetworkMode) *entry {
	return &entry{id: id, arn: labels[ecs.LabelTaskARN], joins: mode.ConnectedContainer(), host: mode.IsHost()}
}

// inspected is what the index keeps of the inspection of a container, which is to have
// that ID, or any if it is "".
func inspected(id string, info *container.InspectResponse) (*entry, error) {
	if info.ContainerJSONBase == nil || id != "" && info.ID != id || info.State == nil || info.Config == nil || info.HostConfig == nil {
		return nil, fmt.Errorf("inspecting container %s: the answer is not about it, or not whole", id)
	}
	labels := internLabels(info.Config.Labels)
	e := newEntry(info.ID, labels, info.HostConfig.NetworkMode)
	c := &ecs.Container{
		ID:         info.ID,
		DockerName: dockerName(info.Name),
		Image:      intern(info.Config.Image),
		ImageID:    intern(info.Image),
		Labels:     labels,
		Known:      status(info.State.Status),
		CPU:        uint64(max(info.HostConfig.CPUShares, 0)),
		Memory:     uint64(max(info.HostConfig.Memory, 0)) >> 20,
		Created:    parseTime(info.Created),
		Started:    parseTime(info.State.StartedAt),
		Finished:   parseTime(info.State.FinishedAt),
		Joins:      e.joins,
		Health:     health(info.State.Health),
	}
	c.Name = cmp.Or(c.Labels[ecs.LabelContainerName], c.DockerName)
	if c.Known == ecs.StatusStopped {
		code := info.State.ExitCode // not a pointer into what need not be kept
		c.ExitCode = &code
	} else {
		e.pid = info.State.Pid
	}
	for p := range info.Config.ExposedPorts {
		c.Ports = append(c.Ports, ecs.Port{Number: uint16(p.Int()), Protocol: p.Proto()})
	}
	slices.SortFunc(c.Ports, func(a, b ecs.Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), strings.Compare(a.Protocol, b.Protocol))
	})
	for _, m := range info.Mounts {
		c.Volumes = append(c.Volumes, ecs.Volume{DockerName: m.Name, Source: m.Source, Destination: m.Destination})
	}
	slices.SortFunc(c.Volumes, func(a, b ecs.Volume) int { return strings.Compare(a.Destination, b.Destination) })
	e.container = c
	return e, nil
}

// dockerName is a container's name without the slash that Docker puts before it.
func dockerName(name string) string { return strings.TrimPrefix(name, "/") }

// status says a container's state in the words of the ECS agent.
func status(state container.ContainerState) ecs.Status {
	switch state {
	case container.StateCreated:
		return ecs.StatusCreated
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		return ecs.StatusRunning
	case container.StateExited, container.StateDead, container.StateRemoving:
		return ecs.StatusStopped
	default:
		return ecs.StatusNone
	}
}

// parseTime is the zero time for Docker's "not yet", which is of the year 1.
func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() == 1 {
		return time.Time{}
	}
	return t
}

// health is the verdict of the last check, nil while there is none.
func health(h *container.Health) *ecs.Health {
	if h == nil || h.Status != container.Healthy && h.Status != container.Unhealthy {
		return nil
	}
	v := &ecs.Health{Status: strings.ToUpper(h.Status)}
	if len(h.Log) > 0 {
		last := h.Log[len(h.Log)-1]
		v.Since, v.ExitCode, v.Output = last.End, last.ExitCode, last.Output
	}
	return v
}
