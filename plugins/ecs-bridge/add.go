package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/cniedge"
	"taskmeta/internal/ecs"
	"taskmeta/internal/ipam"
	"taskmeta/internal/link"
	"taskmeta/internal/port"
)

// add attaches the task. The host's end of its veth pair comes up last, when all that
// guards it stands. What fails takes back what was done; a bridge stays, since others may
// be using it by then.
func add(ctx context.Context, r *cniedge.Request) (result *current.Result, err error) {
	conf, err := port.ParseConfig(r.Config)
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
	plugin, err := findIPAM(r, conf.IPAM)
	if err != nil {
		return nil, err
	}
	release, err := lock(ctx, r, conf.IPAM, r.Attachment)
	if err != nil {
		return nil, err
	}
	defer release()
	host, pin, task, err := open(r, conf.Netns)
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
	p.pin = pin
	want, err := conf.Build(host, task, p.bridge, p.veth, r.IfName, p.Grant)
	if err != nil {
		return nil, err
	}
	return merge(prev, p, r, want.MAC, conf.MTU), nil
}

// lock keeps the resolver from mending what is about to be made or removed. It looks after
// the ports of ecs-ipam's attachments alone.
func lock(ctx context.Context, r *cniedge.Request, plugin string, of ...ecs.Attachment) (release func(), err error) {
	if plugin != ipam.Name {
		return func() {}, nil
	}
	db, err := ipam.Path(r.Config)
	if err != nil {
		return func() {}, nil // the plugin itself says what is wrong
	}
	return port.Lock(ctx, db, of...)
}

// open opens the network namespace of the bridge, whose pin is "" for the plugin's own, and
// the task's, for a verb that cannot do without it.
func open(r *cniedge.Request, named string) (host *link.Host, pin string, task *link.Task, err error) {
	refuse := func(expected string) error {
		return types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS is %q%s", r.Netns, expected), "")
	}
	task, err = link.OpenTask(r.Netns)
	if err != nil {
		return nil, "", nil, refuse(fmt.Sprintf(": expected the path of a network namespace: %s", err))
	}
	ns, pin, err := port.Open(r.Config, named)
	switch {
	case err != nil:
	case ns.ID() == task.NS.ID():
		err = refuse(", which is the endpoint's network namespace: expected the task's")
	default:
		host, err = link.Open(ns)
	}
	if err != nil {
		task.Close()
		return nil, "", nil, err
	}
	return host, pin, task, nil
}

// hosts are the network namespaces in which a port may stand.
type hosts []*link.Host

// openHosts opens all of them, until the process ends.
func openHosts(r *cniedge.Request, named string) (all hosts, err error) {
	spaces, err := port.OpenAll(r.Config, named)
	if err != nil {
		return nil, err
	}
	for _, ns := range spaces {
		host, err := link.Open(ns)
		if err != nil {
			all.close()
			return nil, err
		}
		all = append(all, host)
	}
	return all, nil
}

func (h hosts) close() {
	for _, host := range h {
		host.Close()
	}
}

// A pair is a veth pair on a bridge, with the addresses to go with it.
type pair struct {
	port.Grant
	bridge link.Bridge
	veth   link.Veth
	pin    string // of the network namespace that both stand in, "" for the plugin's own
}

// connect asks the IPAM plugin for addresses and meanwhile makes bridge and veth pair.
func connect(ctx context.Context, r *cniedge.Request, conf *port.Config, plugin *delegate, host *link.Host, task *link.Task, back *undo) (pair, error) {
	type answer struct {
		port.Grant
		err error
	}
	asked := make(chan answer, 1)
	go func() {
		g, err := plugin.add(ctx)
		asked <- answer{g, err}
	}()
	var p pair
	bridge, err := host.EnsureBridge(conf.Bridge, conf.MTU)
	if err == nil {
		p.bridge = bridge
		err = host.EnsureAddr(bridge, link.Endpoint)
	}
	if err == nil {
		p.veth, err = host.MakeVeth(task, r.Attachment, bridge, conf.MTU, bootclock.Now(), string(conf.Guard))
	}
	given := <-asked
	p.Grant = given.Grant

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
		back.push(func(context.Context) error { return port.Detach(host, bridge.Name, p.veth) })
	}
	if given.err != nil {
		return p, given.err
	}
	return p, err
}

// merge is the result: that of earlier plugins, if there were any, and after it ours. The
// name servers are those of the first that has any.
func merge(prev *current.Result, p pair, r *cniedge.Request, mac net.HardwareAddr, mtu int) *current.Result {
	out := prev
	if out == nil {
		out = &current.Result{CNIVersion: current.ImplementedSpecVersion}
	}
	if out.DNS.IsEmpty() {
		out.DNS = p.Result.DNS
	}
	own := len(out.Interfaces) + 2 // the index of the task's end
	out.Interfaces = append(out.Interfaces,
		&current.Interface{Name: p.bridge.Name, Mac: p.bridge.MAC.String(), Sandbox: p.pin},
		&current.Interface{Name: p.veth.Name, Mac: p.veth.MAC.String(), Mtu: mtu, Sandbox: p.pin},
		&current.Interface{Name: r.IfName, Mac: mac.String(), Mtu: mtu, Sandbox: r.Netns},
	)
	for _, ip := range p.Result.IPs {
		out.IPs = append(out.IPs, &current.IPConfig{Interface: &own, Address: ip.Address, Gateway: ip.Gateway})
	}
	out.Routes = append(out.Routes, p.Result.Routes...)
	return out
}
