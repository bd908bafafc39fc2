package endpoint

import (
	"context"
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

// specsOf reads the bindings whose ports are kept here. What was read before is taken as it
// was.
func (k *Keeper) specsOf(bindings []*ecs.Binding, hosts []*link.Host) []*port.Spec {
	if bindings == nil {
		return nil
	}
	all := make(map[*ecs.Binding]*port.Spec, len(bindings))
	specs := make([]*port.Spec, 0, len(bindings))
	for _, b := range bindings {
		s, known := k.specs[b]
		if !known && b.Network != "" { // AWS's plugin does not say whose its ports are
			var err error
			if s, err = port.Of(b); err != nil {
				k.cfg.Logger.Error("a port is not kept whole: its configuration cannot be read", "container", b.Container, "ifname", b.IfName, "err", err)
			} else if !s.IsOf(k.cfg.Bridge, k.cfg.Pin) {
				s = nil
			} else if b.Conf == nil {
				s.TakeGateways(subnetsOf(hosts, k.cfg.Bridge))
			}
		}
		all[b] = s
		if s != nil {
			specs = append(specs, s)
		}
	}
	k.specs = all
	return specs
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

// mendPorts makes whole every port that is not. It returns how many it made whole, and how
// many it moved from another place.
func (k *Keeper) mendPorts(ctx context.Context, host *link.Host, bridge link.Bridge, specs []*port.Spec, ps places, ends bool) (mended, moved int, err error) {
	links, err := host.Links()
	if err != nil {
		return 0, 0, err
	}
	look, err := k.rules.NewLook(host.Conn, bridge.Index)
	if err != nil {
		return 0, 0, err
	}
	byName := make(map[string]rtnl.Link, len(links))
	for _, l := range links {
		byName[l.Name] = l
	}
	k.rules.Keep(func(name string) bool { _, ok := byName[name]; return ok })
	there := make(map[ecs.Attachment]bool, len(specs))
	var names []string
	var reason error
	first, last := k.turn(len(specs), ends)
	for n, s := range specs {
		there[s.Binding.Attachment] = true
		l := byName[link.HostName(s.Binding.Attachment)]
		problem := k.problem(look, host, bridge, s, l)
		task := problem == nil && (!l.Carrier || n >= first && n < last)
		if task {
			problem = s.CheckTask()
		}
		if problem == nil {
			delete(k.failing, s.Binding.Attachment)
			continue
		}
		wasMoved, ok := k.mend(ctx, host, bridge, s, ps, task)
		switch {
		case wasMoved:
			moved++
		case ok:
			names, reason = append(names, s.Binding.Container), problem
		}
	}
	for a := range k.failing {
		if !there[a] {
			delete(k.failing, a)
		}
	}
	k.tellBroken()
	if len(names) > 0 {
		k.cfg.Logger.Warn("ports were made whole again", "bridge", bridge.Name, "ports", len(names), "containers", names[:min(namedPorts, len(names))], "found", reason)
	}
	return len(names), moved, nil
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

// problem names the first thing of the host's end of a port that is not as it should be.
func (k *Keeper) problem(look *guard.Look, host *link.Host, bridge link.Bridge, s *port.Spec, l rtnl.Link) error {
	v, ok := link.VethOf(l)
	switch {
	case !ok || v.Attachment != s.Binding.Attachment:
		return fmt.Errorf("veth %s is missing", link.HostName(s.Binding.Attachment))
	case v.Bridge != bridge.Index:
		return fmt.Errorf("veth %s is not a port of %s", v.Name, bridge.Name)
	case !v.Up:
		return fmt.Errorf("veth %s is down", v.Name)
	}
	p := s.Guarded(bridge, v)
	if err := look.CheckEntries(l, p); err != nil {
		return err
	}
	return look.CheckRules(host.Conn, p)
}

// mend makes a port whole, unless somebody else is at work on it, and reports whether it
// did, or moved it from another place. Task says that the task's end is what lacks
// something. What fails is tried again after a pause that grows.
func (k *Keeper) mend(ctx context.Context, host *link.Host, bridge link.Bridge, s *port.Spec, ps places, task bool) (moved, mended bool) {
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
		moved, mended, err = k.mendLocked(ctx, host, bridge, s, ps, task)
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

func (k *Keeper) mendLocked(ctx context.Context, host *link.Host, bridge link.Bridge, s *port.Spec, ps places, task bool) (moved, mended bool, err error) {
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
		other, at := ps.find(s.Binding.Attachment)
		if other == nil {
			return false, true, s.Make(ctx, host, bridge)
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
