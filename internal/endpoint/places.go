package endpoint

import (
	"errors"
	"io/fs"
	"net/netip"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
	"taskmeta/internal/sockdiag"
)

// A place is another network namespace than the endpoint's, in which its ports may stand:
// the host's, as after an upgrade or where plugins ran before the resolver, the one that is
// pinned while the endpoint stands on the host, or one that was pinned in its place.
type place struct {
	*link.Host
	pin   string // where it is pinned, to be taken away when it is empty
	ours  bool   // opened for this look
	veths map[ecs.Attachment]link.Veth
}

// Elsewhere is the other places. They are opened when one is first asked for, since to list
// what stands there takes longer the more interfaces the host has, and most looks miss
// nothing.
type elsewhere struct {
	keeper *Keeper
	opened bool
	all    []*place
}

// get opens the places, and lists what stands in them.
func (e *elsewhere) get() []*place {
	if e.opened {
		return e.all
	}
	e.opened = true
	k := e.keeper
	switch {
	case !k.onHost():
		e.add(k.cfg.Host, "", false)
	default:
		pin := netns.PinPath(k.cfg.DB)
		if ns, err := netns.Pinned(pin); err == nil && ns.ID() != k.cfg.Netns.ID() {
			e.add(ns, pin, true)
		} else if err == nil {
			_ = ns.Close()
		}
	}
	for _, ns := range k.strays {
		e.add(ns, "", false)
	}
	return e.all
}

func (e *elsewhere) add(ns *netns.NS, pin string, ours bool) {
	host, err := link.Open(ns)
	var veths []link.Veth
	if err == nil {
		veths, err = host.Veths()
	}
	if err != nil {
		e.keeper.cfg.Logger.Debug("another place of ports cannot be looked at", "netns", ns.Path(), "err", err)
		return
	}
	p := &place{host, pin, ours, make(map[ecs.Attachment]link.Veth, len(veths))}
	for _, v := range veths {
		p.veths[v.Attachment] = v
	}
	e.all = append(e.all, p)
}

func (e *elsewhere) close() {
	for _, p := range e.all {
		ns := p.NS
		p.Close()
		if p.ours {
			_ = ns.Close()
		}
	}
}

func (e *elsewhere) hosts() (all []*link.Host) {
	for _, p := range e.get() {
		all = append(all, p.Host)
	}
	return all
}

// find returns the place in which the port of an attachment stands, nil for none.
func (e *elsewhere) find(a ecs.Attachment) (*place, link.Veth) {
	for _, p := range e.get() {
		if v, ok := p.veths[a]; ok {
			return p, v
		}
	}
	return nil, link.Veth{}
}

// isPinned reports whether the endpoint's network namespace is where the plugins look.
func (k *Keeper) isPinned() bool {
	if k.onHost() {
		return true
	}
	id, err := netns.Identify(k.cfg.Pin)
	return err == nil && id == k.cfg.Netns.ID()
}

// keepPin pins the namespace again if somebody has taken the pin away, and reports whether
// it did. Another one that was pinned there may have got ports, and is remembered.
func (k *Keeper) keepPin() bool {
	if k.isPinned() {
		return false
	}
	if ns, err := netns.Pinned(k.cfg.Pin); err == nil {
		if own := k.cfg.Host.ID(); ns.ID() == own {
			_ = ns.Close()
		} else {
			k.strays = append(k.strays, ns)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		k.cfg.Logger.Debug("the pin cannot be looked at", "pin", k.cfg.Pin, "err", err)
	}
	err := k.cfg.Netns.PinAt(k.cfg.Pin)
	if err != nil && !k.pinLost {
		k.cfg.Logger.Error("the endpoint's network namespace is not pinned any more, and cannot be pinned again: plugins attach on the host, from where ports are moved", "pin", k.cfg.Pin, "err", err)
	}
	k.pinLost = err != nil
	return err == nil
}

// move moves a port from another place to the endpoint's. It still has to be made whole.
func (p *place) move(v link.Veth, bridge string, to *netns.NS) error {
	if err := p.MoveTo(v, to); err != nil {
		return err
	}
	delete(p.veths, v.Attachment)
	return guard.Remove(p.Conn, bridge, v.Name, false)
}

// clear takes away what the endpoint left in other places, once no port stands there and no
// other resolver serves there.
func (k *Keeper) clear(all []*place) {
	for _, p := range all {
		if len(p.veths) > 0 || serves(p.NS) {
			continue
		}
		if err := k.clearPlace(p); err != nil {
			k.cfg.Logger.Warn("what the endpoint left in another network namespace cannot be removed", "netns", p.NS.Path(), "err", err)
		}
	}
}

func (k *Keeper) clearPlace(p *place) error {
	b, err := p.Bridge(k.cfg.Bridge)
	if err == nil {
		if err := clearBridge(p.Host, b, k.gateways); err != nil {
			return err
		}
	}
	if _, err := p.RemovePrivate(k.cfg.Bridge); err != nil {
		return err
	}
	if _, err := (guard.Host{Bridge: k.cfg.Bridge}).Remove(p.Conn); err != nil {
		return err
	}
	if err := guard.RemovePorts(p.Conn); err != nil {
		return err
	}
	if p.pin != "" {
		return netns.Unpin(p.pin)
	}
	return nil
}

// clearBridge removes a bridge that was made here and has no ports, and from another one its
// addresses: the endpoint's, and if it has no ports the gateways.
func clearBridge(host *link.Host, b link.Bridge, gateways map[netip.Prefix]bool) error {
	ports, err := host.BridgePorts(b.Index)
	if err != nil {
		return err
	}
	if b.Made() && len(ports) == 0 {
		return host.DelBridge(b)
	}
	addrs, err := host.Addrs(b.Index)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.Prefix == link.Endpoint || len(ports) == 0 && gateways[a.Prefix] {
			if err := host.DelAddr(b, a.Prefix); err != nil {
				return err
			}
		}
	}
	return nil
}

// serves reports whether a resolver listens in a namespace; one that cannot be asked counts
// as if there were.
func serves(ns *netns.NS) bool {
	c, err := sockdiag.Open(ns)
	if err != nil {
		return true
	}
	defer c.Close()
	listeners, err := c.Listeners()
	if err != nil {
		return true
	}
	for _, at := range listeners {
		if at.Addr() == ecs.EndpointAddr {
			return true
		}
	}
	return false
}
