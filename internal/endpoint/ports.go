package endpoint

import (
	"fmt"
	"net/netip"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// guardPorts gives the bridge's ports their chains again if somebody has removed them, as
// `nft flush ruleset` does, and reports how many there were. What a port may send follows
// from the binding of its task and from the mode that the plugin was given for it.
func (k *Keeper) guardPorts(host *link.Host, bridge link.Bridge, subnets []netip.Prefix, ports []link.Port, held Held) (int, error) {
	if k.cfg.Guard == guard.Off || held == nil {
		return 0, nil
	}
	var guarded []guard.Port
	for _, p := range ports {
		if p.Veth == nil || !p.Veth.Up {
			continue
		}
		mode, err := guard.ParseMode(p.Veth.Guard)
		if err != nil || mode == guard.Off {
			continue
		}
		if b := held[p.Veth.Attachment]; b != nil && len(b.Addrs) > 0 {
			guarded = append(guarded, guard.Port{
				Mode: mode, Link: p.Name, LinkIndex: p.Index,
				MAC: ecs.MAC(b.Addrs[0].Addr()), Addrs: b.Addrs, Gateways: append(gateways(subnets, b.Addrs), b.Hops...),
				Bridge: bridge.Name, BridgeIndex: bridge.Index, BridgeMAC: bridge.MAC,
			})
		}
	}
	restored, err := guard.Restore(host.Conn, guarded)
	if err != nil {
		return len(restored), fmt.Errorf("guarding the ports of %s again: %w", bridge.Name, err)
	}
	if len(restored) > 0 {
		k.cfg.Logger.Warn("ports were guarded again: somebody has removed their chains", "bridge", bridge.Name, "ports", restored)
	}
	return len(restored), nil
}

// gateways are the addresses of the bridge that are in one of the task's subnets, in the
// order of the task's.
func gateways(bridge, task []netip.Prefix) (in []netip.Addr) {
	for _, own := range task {
		for _, b := range bridge {
			if own.Contains(b.Addr()) {
				in = append(in, b.Addr())
			}
		}
	}
	return in
}

// Held are the bindings by attachment, nil if they cannot be read.
type Held map[ecs.Attachment]*ecs.Binding

// HeldBy sorts bindings by attachment.
func HeldBy(bindings []*ecs.Binding) Held {
	held := make(Held, len(bindings))
	for _, b := range bindings {
		held[b.Attachment] = b
	}
	return held
}

// UnknownPorts returns the names of the ports that are no attachment's. A port's alias is
// not enough: whoever can make a port can give it any alias. The bindings are to be read
// after the ports.
func UnknownPorts(host *link.Host, ports []link.Port, held Held) (unknown []string) {
	for _, p := range ports {
		switch {
		case p.Veth == nil || p.Name != link.HostName(p.Veth.Attachment):
			unknown = append(unknown, p.Name)
		case held == nil || !p.Veth.Up || held[p.Veth.Attachment] != nil:
			// A port comes up after its binding was made.
		default:
			// And it goes before its binding: one that is gone now was an attachment's.
			if _, err := host.LinkAt(p.Index); err == nil {
				unknown = append(unknown, p.Name)
			}
		}
	}
	return unknown
}

// without reports of a binding whether its port is gone. A port that is not among those
// listed may have come since. AWS's plugin does not say whose its ports are.
func without(host *link.Host, ports []link.Port) func(*ecs.Binding) bool {
	there := make(map[ecs.Attachment]bool, len(ports))
	for _, p := range ports {
		if p.Veth != nil {
			there[p.Veth.Attachment] = true
		}
	}
	return func(b *ecs.Binding) bool {
		if b.Network == "" || there[b.Attachment] {
			return false
		}
		_, err := host.Link(link.HostName(b.Attachment))
		return err != nil
	}
}
