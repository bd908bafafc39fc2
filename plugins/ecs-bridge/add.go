package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/cniedge"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// imds are the addresses that EC2's instance metadata service answers on.
var imds = []netip.Prefix{
	netip.MustParsePrefix("169.254.169.254/32"),
	netip.MustParsePrefix("fd00:ec2::254/128"),
}

// add attaches the task. The host's end of its veth pair comes up last, when all that
// guards it stands. What fails takes back what was done; a bridge stays, since others may
// be using it by then.
func add(ctx context.Context, r *cniedge.Request) (result *current.Result, err error) {
	conf, err := parseConfig(r.Config)
	if err != nil {
		return nil, err
	}
	prev, err := r.PrevResult()
	if err != nil {
		return nil, err
	}
	if most := link.MaxNames(r.Attachment) - len(r.Network); len(r.Container) > most {
		return nil, cniedge.BadEnv("CNI_CONTAINERID", r.Container, fmt.Sprintf("at most %d bytes beside the network's name", most))
	}
	plugin, err := findIPAM(r, conf.ipam)
	if err != nil {
		return nil, err
	}
	host, task, err := open(r)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	defer task.Close()

	var back undo
	defer back.onError(ctx, &err)

	p, err := connect(ctx, r, conf, plugin, host, task, &back)
	if err != nil {
		return nil, err
	}
	for _, g := range p.gateways {
		if err := host.EnsureAddr(p.bridge, g); err != nil {
			return nil, err
		}
	}
	want := conf.wants(r.IfName, p.grant)
	port := conf.port(p, want)
	if err := port.Install(host.Conn); err != nil {
		return nil, err
	}
	if err := task.SetUp(want); err != nil {
		return nil, fmt.Errorf("setting up %s in the task's namespace: %w", r.IfName, err)
	}
	if err := port.Attach(host.Conn); err != nil {
		return nil, err
	}
	if err := host.SetUp(p.veth, p.bridge); err != nil {
		return nil, err
	}
	if err := task.Configure(want); err != nil {
		return nil, fmt.Errorf("setting up %s in the task's namespace: %w", r.IfName, err)
	}
	return merge(prev, p, r, want.MAC, conf.mtu), nil
}

// open opens the host's network namespace and the task's, for a verb that cannot do
// without it.
func open(r *cniedge.Request) (*link.Host, *link.Task, error) {
	task, err := link.OpenTask(r.Netns)
	if err != nil {
		return nil, nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS is %q: expected the path of a network namespace: %s", r.Netns, err), "")
	}
	host, err := openHost()
	if err != nil {
		task.Close()
		return nil, nil, err
	}
	return host, task, nil
}

// openHost opens the plugin's own network namespace, in which the bridge stands, until the
// process ends.
func openHost() (*link.Host, error) {
	ns, err := netns.Own()
	if err != nil {
		return nil, err
	}
	return link.Open(ns)
}

// A pair is a veth pair on a bridge, with the addresses to go with it.
type pair struct {
	grant
	bridge link.Bridge
	veth   link.Veth
}

// connect asks the IPAM plugin for addresses and meanwhile makes bridge and veth pair.
func connect(ctx context.Context, r *cniedge.Request, conf *config, plugin *delegate, host *link.Host, task *link.Task, back *undo) (pair, error) {
	type answer struct {
		grant
		err error
	}
	asked := make(chan answer, 1)
	go func() {
		g, err := plugin.add(ctx)
		asked <- answer{g, err}
	}()
	var p pair
	bridge, err := host.EnsureBridge(conf.bridge, conf.mtu)
	if err == nil {
		p.bridge = bridge
		err = host.EnsureAddr(bridge, link.Endpoint)
	}
	if err == nil {
		p.veth, err = host.MakeVeth(task, r.Attachment, bridge, conf.mtu, bootclock.Now(), string(conf.guard))
	}
	given := <-asked
	p.grant = given.grant

	// An IPAM plugin that refuses has taken nothing, and what it refuses to give twice is in
	// use. One that died, or answered nonsense, may have taken an address: nobody has it but
	// this attachment, if its veth is new.
	refused := errors.As(given.err, new(*types.Error))
	if given.err == nil || !refused && err == nil {
		back.push(func(ctx context.Context) error {
			_, err := plugin.do(ctx, "DEL")
			return err
		})
	}
	if err == nil {
		back.push(func(context.Context) error { return detach(host, bridge.Name, p.veth) })
	}
	if given.err != nil {
		return p, given.err
	}
	return p, err
}

// port is what the task may send: what comes from its own addresses to the next hops of
// its routes, as far as the mode of the guard goes. A next hop of its own is in one of
// its subnets; others are on interfaces of earlier plugins.
func (c *config) port(p pair, i link.Interface) guard.Port {
	port := guard.Port{
		Mode: c.guard, Link: p.veth.Name, MAC: i.MAC, Addrs: i.Addrs,
		Bridge: p.bridge.Name, BridgeMAC: p.bridge.MAC,
		LinkIndex: p.veth.Index, BridgeIndex: p.bridge.Index,
	}
	hops := make([]netip.Addr, 0, len(p.gateways)+len(i.Routes))
	for _, g := range p.gateways {
		hops = append(hops, g.Addr())
	}
	for _, r := range i.Routes {
		hops = append(hops, r.Gateway)
	}
	for _, hop := range hops {
		own := slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(hop) })
		if own && !slices.Contains(port.Gateways, hop) {
			port.Gateways = append(port.Gateways, hop)
		}
	}
	return port
}

// wants is what the task's interface is to have. Its routes are the gateways', then the
// IPAM plugin's, as AWS's plugin has them: nothing else of the subnet is on the link,
// unless the configuration says so.
func (c *config) wants(name string, g grant) link.Interface {
	i := link.Interface{Name: name, MAC: ecs.MAC(g.addrs[0].Addr()), Addrs: g.addrs}
	for n, addr := range g.addrs {
		gateway := g.gateways[n].Addr()
		i.Routes = append(i.Routes, link.Route{Dst: netip.PrefixFrom(gateway, gateway.BitLen())})
		onLink := c.onLink6
		if gateway.Is4() {
			onLink = c.onLink4
		}
		if onLink != 0 {
			i.Routes = append(i.Routes, link.Route{Dst: netip.PrefixFrom(addr.Addr(), onLink).Masked()})
		}
		if c.blockIMDS {
			for _, p := range imds {
				if p.Addr().Is4() == gateway.Is4() {
					i.Routes = append(i.Routes, link.Route{Dst: p, Blackhole: true})
				}
			}
		}
	}
	i.Routes = append(i.Routes, g.routes...)
	return i
}

// merge is the result: that of earlier plugins, if there were any, and after it ours. The
// name servers are those of the first that has any.
func merge(prev *current.Result, p pair, r *cniedge.Request, mac net.HardwareAddr, mtu int) *current.Result {
	out := prev
	if out == nil {
		out = &current.Result{CNIVersion: current.ImplementedSpecVersion}
	}
	if out.DNS.IsEmpty() {
		out.DNS = p.result.DNS
	}
	own := len(out.Interfaces) + 2 // the index of the task's end
	out.Interfaces = append(out.Interfaces,
		&current.Interface{Name: p.bridge.Name, Mac: p.bridge.MAC.String()},
		&current.Interface{Name: p.veth.Name, Mac: p.veth.MAC.String(), Mtu: mtu},
		&current.Interface{Name: r.IfName, Mac: mac.String(), Mtu: mtu, Sandbox: r.Netns},
	)
	for _, ip := range p.result.IPs {
		out.IPs = append(out.IPs, &current.IPConfig{Interface: &own, Address: ip.Address, Gateway: ip.Gateway})
	}
	out.Routes = append(out.Routes, p.result.Routes...)
	return out
}
