package ecs

import (
	"net/netip"
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
	// Pause marks the container that owns the task's network namespace for others.
	Pause bool
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
