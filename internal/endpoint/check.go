package endpoint

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// CheckBridge looks for the bridge, and for ports of it that are no task's. It returns how
// many ports there are.
func CheckBridge(host *link.Host, name string, bindings func() ([]*ecs.Binding, error)) (ports int, err error) {
	b, err := host.Bridge(name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return 0, fmt.Errorf("there is no bridge %s: `ecs-resolver serve` makes it", name)
	case err != nil:
		return 0, err
	case !b.Up:
		return 0, fmt.Errorf("%s is down: `ip link set %[1]s up`", name)
	}
	all, err := host.Ports(b)
	if err != nil {
		return 0, err
	}
	var held Held
	if read, err := bindings(); err == nil { // else the bindings' own check says so
		held = HeldBy(read)
	}
	for _, port := range UnknownPorts(host, all, held) {
		return 0, fmt.Errorf("%s has the port %s, which is no task's and could speak for any of them: `ip link set %[2]s nomaster`", name, port)
	}
	for _, p := range all {
		if p.Veth == nil || !p.Veth.Attachment.IsProbe() {
			ports++
		}
	}
	return ports, nil
}

// CheckAddress looks for the address that tasks ask.
func CheckAddress(host *link.Host, bridge string) error {
	missing := fmt.Errorf("%s is not on %s: `ecs-resolver serve` adds it", ecs.EndpointAddr, bridge)
	found, err := host.Link(bridge)
	if err != nil {
		return missing
	}
	addrs, err := host.Addrs(found.Index)
	if err != nil {
		return fmt.Errorf("listing the addresses of %s: %w", bridge, err)
	}
	for _, a := range addrs {
		if a.Addr() == ecs.EndpointAddr {
			return nil
		}
	}
	return missing
}

// CheckTable looks at the host's table, which there is in every mode but [guard.Off].
func CheckTable(host *link.Host, bridge string, mode guard.Mode) error {
	if mode == guard.Off {
		return nil
	}
	if _, err := host.Link(bridge); err != nil {
		return fmt.Errorf("there is no bridge %s to guard: `ecs-resolver serve` makes both", bridge)
	}
	err := guard.Host{Bridge: bridge, Mode: mode}.Check(host.Conn)
	if errors.Is(err, guard.ErrOpen) {
		return fmt.Errorf("%w: `ecs-resolver serve --guard %s` makes it", err, mode)
	}
	return err
}
