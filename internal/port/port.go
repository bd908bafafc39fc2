// Package port is an attachment's port on the tasks' bridge: what of a network configuration
// it is made by, what the task's interface then has, and what it may send.
package port

import (
	"fmt"
	"net/netip"
	"slices"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// imds are the addresses that EC2's instance metadata service answers on.
var imds = []netip.Prefix{
	netip.MustParsePrefix("169.254.169.254/32"),
	netip.MustParsePrefix("fd00:ec2::254/128"),
}

// Interface is what the task's interface is to have. Its routes are the gateways', then the
// IPAM plugin's, as AWS's plugin has them: nothing else of the subnet is on the link, unless
// the configuration says so. As theirs is, the route to a gateway is by itself.
func (c *Config) Interface(name string, g Grant) link.Interface {
	i := link.Interface{Name: name, MAC: ecs.MAC(g.Addrs[0].Addr()), Addrs: g.Addrs}
	for n, addr := range g.Addrs {
		gateway := g.Gateways[n].Addr()
		i.Routes = append(i.Routes, link.Route{Dst: netip.PrefixFrom(gateway, gateway.BitLen()), Gateway: gateway})
		onLink := c.OnLink6
		if gateway.Is4() {
			onLink = c.OnLink4
		}
		if onLink != 0 {
			i.Routes = append(i.Routes, link.Route{Dst: netip.PrefixFrom(addr.Addr(), onLink).Masked()})
		}
		if c.BlockIMDS {
			for _, p := range imds {
				if p.Addr().Is4() == gateway.Is4() {
					i.Routes = append(i.Routes, link.Route{Dst: p, Blackhole: true})
				}
			}
		}
	}
	i.Routes = append(i.Routes, g.Routes...)
	return i
}

// Build does with a new veth pair what is left of an ADD, in an order in which a process may
// be killed between any two steps: the host's end comes up last, when all that guards it
// stands, and the task's routes when frames pass.
func (c *Config) Build(host *link.Host, task *link.Task, b link.Bridge, v link.Veth, ifname string, g Grant) (link.Interface, error) {
	for _, gateway := range g.Gateways {
		if err := host.EnsureAddr(b, gateway); err != nil {
			return link.Interface{}, err
		}
	}
	i := c.Interface(ifname, g)
	p := c.Guarded(b, v, g, i)
	if err := p.Install(host.Conn); err != nil {
		return i, err
	}
	if err := task.SetUp(i); err != nil {
		return i, fmt.Errorf("setting up %s in the task's namespace: %w", ifname, err)
	}
	if err := p.Attach(host.Conn); err != nil {
		return i, err
	}
	if err := host.SetUp(v, b); err != nil {
		return i, err
	}
	if err := task.Configure(i); err != nil {
		return i, fmt.Errorf("setting up %s in the task's namespace: %w", ifname, err)
	}
	return i, nil
}

// Guarded is what the task may send: what comes from its own addresses to the next hops of
// its routes, as far as the mode of the guard goes. A next hop of its own is in one of its
// subnets; others are on interfaces of earlier plugins.
func (c *Config) Guarded(b link.Bridge, v link.Veth, g Grant, i link.Interface) guard.Port {
	p := guard.Port{
		Mode: c.Guard, Link: v.Name, MAC: i.MAC, Addrs: i.Addrs,
		Bridge: b.Name, BridgeMAC: b.MAC,
		LinkIndex: v.Index, BridgeIndex: b.Index,
	}
	hops := make([]netip.Addr, 0, len(g.Gateways)+len(i.Routes))
	for _, gateway := range g.Gateways {
		hops = append(hops, gateway.Addr())
	}
	for _, r := range i.Routes {
		hops = append(hops, r.Gateway)
	}
	for _, hop := range hops {
		own := slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(hop) })
		if own && !slices.Contains(p.Gateways, hop) {
			p.Gateways = append(p.Gateways, hop)
		}
	}
	return p
}
