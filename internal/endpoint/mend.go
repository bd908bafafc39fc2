package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"taskmeta/internal/backoff"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/port"
	"taskmeta/internal/rtnl"
)

// endsAtOnce is how many tasks' ends are looked at in one look: each takes some 100 µs.
const endsAtOnce = 64

// namedPorts is how many ports one line of the log names.
const namedPorts = 8

// A failure is a port that could not be made whole.
type failure struct {
	Broken
	pause backoff.Backoff
	next  time.Time // when it is tried again
}

// A kept port is one that is kept whole, with what was found of it.
type kept struct {
	*port.Spec
	name  string      // of the host's end
	veth  link.Veth   // as it was read; its index is 0 before that
	guard *guard.Port // of that veth, on the bridge as it was; nil before that
	rules bool        // its chain is looked at
}

// keptOf reads the bindings whose ports are kept here. What was read before is taken as it
// was.
func (k *Keeper) keptOf(bindings []*ecs.Binding, host *link.Host, others *elsewhere) []*kept {
	if bindings == nil {
		return nil
	}
	all := make(map[*ecs.Binding]*kept, len(bindings))
	ports := make([]*kept, 0, len(bindings))
	for _, b := range bindings {
		p, known := k.kept[b]
		if !known && b.Network != "" { // AWS's plugin does not say whose its ports are
			s, err := port.Of(b)
			switch {
			case err != nil:
				k.cfg.Logger.Error("a port is not kept whole: its configuration cannot be read", "container", b.Container, "ifname", b.IfName, "err", err)
			case s.IsOf(k.cfg.Bridge, k.cfg.Pin):
				if b.Conf == nil {
					s.TakeGateways(subnetsOf(append([]*link.Host{host}, others.hosts()...), k.cfg.Bridge))
				}
				p = &kept{Spec: s, name: link.HostName(b.Attachment), rules: k.cfg.Guard != guard.Off}
			}
		}
		all[b] = p
		if p != nil {
			ports = append(ports, p)
		}
	}
	k.kept = all
	return ports
}

// subnetsOf are the addresses of the bridges of that name.
func subnetsOf(hosts []*link.Host, bridge string) (all []netip.Prefix) {
	for _, h := range hosts {
		b, err := h.Bridge(bridge)
		if err != nil {
			continue
		}
		addrs, err := h.Addrs(b.Index)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			all = append(all, a.Prefix)
		}
	}
	return all
}

// mendPorts makes whole every port that is not. It returns how many it made whole, how many
// it moved from another place, and the ports that the bridge had before.
func (k *Keeper) mendPorts(host *link.Host, bridge link.Bridge, ports []*kept, others *elsewhere, ends bool) (mended, moved int, on []rtnl.Link, err error) {
	on, err = host.BridgePorts(bridge.Index)
	if err != nil {
		return 0, 0, nil, err
	}
	look, err := k.rules.NewLook(host.Conn, bridge.Index)
	if err != nil {
		return 0, 0, nil, err
	}
	byName := make(map[string]*rtnl.Link, len(on))
	for i := range on {
		byName[on[i].Name] = &on[i]
	}
	k.rules.Keep(func(name string) bool { return byName[name] != nil })
	var names []string
	var reason error
	first, last := k.turn(len(ports), ends)
	for n, p := range ports {
		turn := n >= first && n < last
		l := byName[p.name]
		problem := p.problem(look, host, bridge, l, turn)
		task := problem == nil && (turn || l != nil && !l.Carrier)
		if task {
			problem = p.CheckTask()
		}
		if problem == nil {
			delete(k.failing, p.Binding.Attachment)
			continue
		}
		wasMoved, ok := k.mend(host, bridge, p.Spec, others, task)
		switch {
		case wasMoved:
			moved++
		case ok:
			names, reason = append(names, p.Binding.Container), problem
		}
	}
	k.forget(ports)
	k.tellBroken()
	if len(names) > 0 {
		k.cfg.Logger.Warn("ports were made whole again", "bridge", bridge.Name, "ports", len(names), "containers", names[:min(namedPorts, len(names))], "found", reason)
	}
	return len(names), moved, on, nil
}

// forget drops the failures of ports that are not kept any more.
func (k *Keeper) forget(ports []*kept) {
	if len(k.failing) == 0 {
		return
	}
	there := make(map[ecs.Attachment]bool, len(ports))
	for _, p := range ports {
		there[p.Binding.Attachment] = true
	}
	for a := range k.failing {
		if !there[a] {
			delete(k.failing, a)
		}
	}
}

// turn is the part of so many ports whose tasks' ends are looked at this time.
func (k *Keeper) turn(ports int, ends bool) (first, last int) {
	if !ends || ports == 0 {
		return 0, 0
	}
	if k.tasks >= ports {
		k.tasks = 0
	}
	first = k.tasks
	k.tasks += endsAtOnce
	return first, k.tasks
}

// problem names the first thing of the host's end of a port that is not as it should be. Its
// link is nil where the bridge has no such port. The veth itself is read when its index is
// another than before, and when it is its turn.
func (p *kept) problem(look *guard.Look, host *link.Host, bridge link.Bridge, l *rtnl.Link, turn bool) error {
	if l == nil || !l.Up {
		return p.Check(host, bridge)
	}
	if l.Index != p.veth.Index || turn {
		v, ok, err := host.Veth(p.Binding.Attachment)
		if err != nil || !ok {
			return p.Check(host, bridge)
		}
		if v.Guard != p.veth.Guard {
			p.guard = nil
		}
		p.veth = v
	}
	if g := p.guard; g == nil || g.LinkIndex != l.Index || g.BridgeIndex != bridge.Index || !slices.Equal(g.BridgeMAC, bridge.MAC) {
		now := p.Guarded(bridge, p.veth)
		p.guard = &now
	}
	if err := look.CheckEntries(*l, p.guard); err != nil || !p.rules {
		return err
	}
	return look.CheckRules(host.Conn, p.guard)
}

// mend makes a port whole, unless somebody else is at work on it, and reports whether it
// did, or moved it from another place. Task says that the task's end is what lacks
// something. What fails is tried again after a pause that grows.
func (k *Keeper) mend(host *link.Host, bridge link.Bridge, s *port.Spec, others *elsewhere, task bool) (moved, mended bool) {
	a := s.Binding.Attachment
	if f := k.failing[a]; f != nil && time.Now().Before(f.next) {
		return false, false
	}
	release, ok, err := port.TryLock(k.cfg.DB, a)
	if err == nil && !ok {
		k.soon = true
		return false, false
	}
	if err == nil {
		defer release()
		if !k.holds(s.Binding) {
			return false, false
		}
		moved, mended, err = k.mendLocked(host, bridge, s, others, task)
	}
	switch {
	case errors.Is(err, port.ErrGone):
		delete(k.failing, a)
		return false, false
	case err != nil:
		k.fail(s, err)
		return false, false
	}
	delete(k.failing, a)
	return moved, mended
}

func (k *Keeper) mendLocked(host *link.Host, bridge link.Bridge, s *port.Spec, others *elsewhere, task bool) (moved, mended bool, err error) {
	if task {
		if s.CheckTask() == nil {
			return false, false, nil
		}
		return false, true, errors.Join(s.MendTask(), s.CheckTask())
	}
	if s.Check(host, bridge) == nil { // an ADD has ended meanwhile
		return false, false, nil
	}
	v, found, err := host.Veth(s.Binding.Attachment)
	if err != nil {
		return false, false, err
	}
	if !found {
		other, at := others.find(s.Binding.Attachment)
		if other == nil {
			return false, true, s.Make(host, bridge)
		}
		if err := other.move(at, bridge.Name, k.cfg.Netns); err != nil {
			return false, false, err
		}
		if v, found, err = host.Veth(s.Binding.Attachment); err != nil || !found {
			return false, false, errors.Join(err, fmt.Errorf("veth %s is missing", at.Name))
		}
		moved = true
	}
	if err := s.Mend(host, bridge, v); err != nil {
		return moved, !moved, err
	}
	return moved, !moved, s.Check(host, bridge)
}

// holds reports whether a binding is there yet: its address may be another's by now.
func (k *Keeper) holds(b *ecs.Binding) bool {
	now, err := k.cfg.Bindings()
	return err == nil && slices.Contains(now, b)
}

// fail takes down a port that could not be made whole, and tells of it once for each reason.
func (k *Keeper) fail(s *port.Spec, err error) {
	f := k.failing[s.Binding.Attachment]
	if f == nil {
		f = &failure{Broken: Broken{Binding: s.Binding, Since: time.Now()}, pause: backoff.Backoff{Max: checkInterval}}
		k.failing[s.Binding.Attachment] = f
	}
	if f.Err == nil || f.Err.Error() != err.Error() {
		k.cfg.Logger.Error("a task's port cannot be made whole: it may get no answer", "container", s.Binding.Container, "task", s.Binding.TaskARN, "addr", s.Binding.Addrs, "err", err)
	}
	f.Err, f.next = err, time.Now().Add(f.pause.Next())
}

// tellBroken makes the failures known.
func (k *Keeper) tellBroken() {
	broken := make([]Broken, 0, len(k.failing))
	for _, f := range k.failing {
		broken = append(broken, f.Broken)
	}
	slices.SortFunc(broken, func(a, b Broken) int { return a.Since.Compare(b.Since) })
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.Broken = broken
}

// due is when a port is to be looked at again without a change, 0 for never.
func (k *Keeper) due() time.Duration {
	var due time.Duration
	if k.soon {
		due = minInterval
	}
	for _, f := range k.failing {
		if left := max(time.Until(f.next), time.Millisecond); due == 0 || left < due {
			due = left
		}
	}
	return due
}
