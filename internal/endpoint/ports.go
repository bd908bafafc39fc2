package endpoint

import (
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/rtnl"
)

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

// readPorts says of each port whose it is: those that are kept were read before.
func readPorts(host *link.Host, on []rtnl.Link, known []*kept) []link.Port {
	by := make(map[int]*kept, len(known))
	for _, p := range known {
		by[p.veth.Index] = p
	}
	ports := make([]link.Port, 0, len(on))
	for _, l := range on {
		p := link.Port{Name: l.Name, Index: l.Index}
		if of := by[l.Index]; of != nil && of.name == l.Name {
			v := of.veth
			v.Up = l.Up
			p.Veth = &v
		} else if full, err := host.LinkAt(l.Index); err != nil {
			continue // it is gone by now
		} else if v, ok := link.VethOf(full); ok {
			p.Veth = &v
		}
		ports = append(ports, p)
	}
	return ports
}
