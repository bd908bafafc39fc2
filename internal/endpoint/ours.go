package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// CheckOurs refuses a bridge that others use, whom the endpoint on it would cut off: one that
// was not made here and has a port or an address that is not ours. One that is not there, or
// that an administrator has made for us, has neither. A port that comes later is an alarm
// ([UnknownPorts]), since tasks are on the bridge by then.
func CheckOurs(host *link.Host, name string, bindings func() ([]*ecs.Binding, error)) error {
	b, err := host.Bridge(name)
	if errors.Is(err, unix.ENODEV) || b.Made() {
		return nil
	}
	if err != nil {
		return err
	}
	ports, err := host.Ports(b)
	if err != nil {
		return err
	}
	for _, p := range ports {
		// AWS's plugin, whose bridge usually has this name, does not say whose its veths are.
		if p.Veth == nil && !(p.Kind == "veth" && name == guard.DefaultBridge) {
			return fmt.Errorf("bridge %s has the port %s, which is no task's: the tasks' bridge is for them alone, so name another with --bridge, or take the port out with `ip link set %[2]s nomaster`", name, p.Name)
		}
	}
	others, err := host.OthersAddrs(b)
	if err != nil {
		return err
	}
	held, err := bindings()
	if err != nil {
		held = nil // its own check says so
	}
	for _, a := range others {
		if !ours(a, held) {
			return fmt.Errorf("bridge %s has the address %s, which is no gateway of a task's: the tasks' bridge is for them alone, so name another with --bridge, or remove the address with `ip address del %[2]s dev %[1]s`", name, a)
		}
	}
	return nil
}

// ours reports of an address that does not say so whether it is one for tasks all the same, as
// those are which AWS's plugin gave, or ours on a kernel that does not keep who gave one: the
// endpoint's, the default subnet's, or in the subnet of a binding.
func ours(a netip.Prefix, held []*ecs.Binding) bool {
	if a == link.Endpoint || a.Masked() == ecs.DefaultSubnet {
		return true
	}
	return slices.ContainsFunc(held, func(b *ecs.Binding) bool {
		return slices.ContainsFunc(b.Addrs, func(own netip.Prefix) bool { return own.Masked() == a.Masked() })
	})
}
