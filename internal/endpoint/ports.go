package endpoint

import (
	"fmt"
	"net"
	"net/netip"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// restorePorts gives the bridge's ports their chains again if somebody has removed them, as
// `nft flush ruleset` does, and reports how many there were. What a port may send follows
// from the binding of its task and from the mode that the plugin was given for it.
func (e *Keeper) restorePorts(bridge link.Bridge, subnets []netip.Prefix, ports []link.Port, held Bindings) (int, error) {
	if e.Guard == guard.Off || held == nil {
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
				MAC: ecs.MAC(b.Addrs[0].Addr()), Addrs: b.Addrs, Gateways: append(within(subnets, b.Addrs), b.Hops...),
				Bridge: bridge.Name, BridgeIndex: bridge.Index, BridgeMAC: bridge.MAC,
			})
		}
	}
	restored, err := guard.Restore(guarded)
	if err != nil {
		return len(restored), fmt.Errorf("guarding the ports of %s again: %w", bridge.Name, err)
	}
	if len(restored) > 0 {
		e.Logger.Warn("ports were guarded again: somebody has removed their chains", "bridge", bridge.Name, "ports", restored)
	}
	return len(restored), nil
}

// within are the addresses of the bridge that are in one of the task's subnets, in the
// order of those: its gateways.
func within(bridge, task []netip.Prefix) (gateways []netip.Addr) {
	for _, own := range task {
		for _, b := range bridge {
			if own.Contains(b.Addr()) {
				gateways = append(gateways, b.Addr())
			}
		}
	}
	return gateways
}

// Bindings are those there are by their attachments, nil if they cannot be read.
type Bindings map[ecs.Attachment]*ecs.Binding

// HeldIn reads the bindings.
func HeldIn(reader *bindingdb.Reader) Bindings {
	snapshot, err := reader.Snapshot()
	if err != nil {
		return nil // there is a check of its own for that
	}
	all := snapshot.All()
	held := make(Bindings, len(all))
	for _, b := range all {
		held[b.Attachment] = b
	}
	return held
}

// Strange are those of the ports that are no attachment's. A port's own word for it is not
// enough: whoever can make one can have it say what it likes. The bindings are to be read
// after the ports.
func Strange(ports []link.Port, held Bindings) (strange []link.Port) {
	for _, p := range ports {
		switch {
		case p.Veth == nil || p.Name != link.HostName(p.Veth.Attachment):
			strange = append(strange, p)
		case held == nil || !p.Veth.Up || held[p.Veth.Attachment] != nil:
			// A port comes up after its binding was made.
		default:
			// And it goes before that ends: one that is gone now was nobody's a moment ago.
			if _, err := net.InterfaceByIndex(p.Index); err == nil {
				strange = append(strange, p)
			}
		}
	}
	return strange
}
