package port

import (
	"fmt"
	"net/netip"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/ipam"
	"taskmeta/internal/link"
)

// A Spec is an attachment's port as its binding says.
type Spec struct {
	Binding *ecs.Binding
	Config  *Config
	Grant   Grant
	// Interface is what the task's interface is to have.
	Interface link.Interface
}

// Of reads a binding.
func Of(b *ecs.Binding) (*Spec, error) {
	conf, err := ipam.Recorded(b)
	if err != nil {
		return nil, err
	}
	c, err := ParseConfig(conf)
	if err != nil {
		return nil, fmt.Errorf("the configuration of %s: %w", b.Attachment, err)
	}
	result, err := ipam.Granted(b, conf)
	if err != nil {
		return nil, err
	}
	g, err := NewGrant(result)
	if err != nil {
		return nil, fmt.Errorf("the configuration of %s: %w", b.Attachment, err)
	}
	return &Spec{b, c, g, c.Interface(b.IfName, g)}, nil
}

// Guarded is what the port may send. The veth says in which mode it was made.
func (s *Spec) Guarded(b link.Bridge, v link.Veth) guard.Port {
	c := *s.Config
	if mode, err := guard.ParseMode(v.Guard); err == nil {
		c.Guard = mode
	}
	p := c.Guarded(b, v, s.Grant, s.Interface)
	if s.Binding.Conf == nil { // its routes are not known
		p.Gateways = append(p.Gateways, s.Binding.Hops...)
	}
	return p
}

// TakeGateways has each address take the gateway in its subnet that the bridge has, instead
// of the default: for a binding that does not say.
func (s *Spec) TakeGateways(bridge []netip.Prefix) {
	for i, own := range s.Grant.Addrs {
		for _, b := range bridge {
			if b.Addr() == ecs.EndpointAddr || own.Masked() != b.Masked() {
				continue
			}
			for n, r := range s.Grant.Routes {
				if r.Gateway == s.Grant.Gateways[i].Addr() {
					s.Grant.Routes[n].Gateway = b.Addr()
				}
			}
			s.Grant.Gateways[i] = b
		}
	}
	s.Interface = s.Config.Interface(s.Binding.IfName, s.Grant)
}
