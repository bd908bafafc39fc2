// Package ecs is the domain: tasks, containers, attachments and the bindings between
// addresses and tasks. It does no input or output and does not read the clock.
package ecs

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// An Attachment is CNI's key of one interface: a container ID and an interface name,
// in one network.
type Attachment struct {
	Network   string `json:"network"`
	Container string `json:"container"`
	IfName    string `json:"ifname"`
}

// String names the attachment in messages.
func (a Attachment) String() string {
	return fmt.Sprintf("%s/%s in network %s", a.Container, a.IfName, a.Network)
}

// ProbeNetwork is the network of the attachments by which `ecs-resolver status` asks the
// endpoint a real question. They last for a moment, and no container is behind them.
const ProbeNetwork = "taskmeta-probe"

// IsProbe reports whether the attachment is such a question's, and no task's.
func (a Attachment) IsProbe() bool { return a.Network == ProbeNetwork }

// A Binding is an attachment with the addresses it was given and the identity of its
// task. ADD records it, DEL ends it, and attribution yields it.
type Binding struct {
	Attachment

	// Addrs are the addresses given, each with the length of its subnet: one IPv4, one
	// IPv6, or one of each.
	Addrs []netip.Prefix `json:"addrs"`
	// Netns is the path of the task's network namespace as the runtime gave it.
	Netns string `json:"netns,omitempty"`
	// NetnsID is the inode of that namespace, by which another that comes to the path later
	// is told from it; 0 if it is unknown.
	NetnsID uint64 `json:"netnsID,omitempty"`
	// ID is the `ipam.id` of the configuration: by custom the pause container's Docker ID.
	ID string `json:"id,omitempty"`
	// TaskARN is empty when the runtime named no task.
	TaskARN string `json:"taskARN,omitempty"`
	// Labels are those the runtime passed in `args.cni.labels`.
	Labels map[string]string `json:"labels,omitempty"`
	// TaskAddrs are the addresses that earlier plugins of the chain gave to the task.
	TaskAddrs []netip.Addr `json:"taskAddrs,omitempty"`
	// Hops are the next hops of the task's routes in its own subnets, but for the gateways.
	Hops []netip.Addr `json:"hops,omitempty"`
	// Conf is what the network configuration of the ADD says of the interface: its port is
	// made anew by it. It is nil where nobody recorded it.
	Conf json.RawMessage `json:"conf,omitempty"`
	// BootID is the kernel's boot ID at the time of the ADD.
	BootID  string    `json:"bootID,omitempty"`
	Created time.Time `json:"created"`
	// Since is the same moment on the kernel's clock since boot, which nobody can set.
	Since time.Duration `json:"since,omitempty"`
}

// Owner is the Docker ID by which the task's pause container may be known: the
// configured ID if there is one, else CNI's container ID.
func (b *Binding) Owner() string {
	if b.ID != "" {
		return b.ID
	}
	return b.Container
}

// Has reports whether addr is one of the binding's own addresses.
func (b *Binding) Has(addr netip.Addr) bool {
	for _, p := range b.Addrs {
		if p.Addr() == addr {
			return true
		}
	}
	return false
}
