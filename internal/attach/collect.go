package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// settled is how old a binding must be for its namespace to have its address, and a veth for
// its ADD to have ended: longer than an ADD may take.
const settled = time.Minute

// Collect frees the bindings of all networks whose network namespace is gone, and removes
// the veths that have no binding because their ADD was cut short. It returns them, the latter
// without addresses. Other runtimes may attach the same meanwhile: what was made since it was
// looked at stays.
func (a *Attacher) Collect(ctx context.Context) (freed []*ecs.Binding, err error) {
	free, err := a.lock(ctx, exclusive)
	if err != nil {
		return nil, err
	}
	defer free()
	if err := a.restoreMissing(ctx); err != nil {
		return nil, err
	}
	gone, err := a.gone(func(b *ecs.Binding) bool { return b.Network != "" }) // what AWS's plugin recorded names no namespace
	halves, e := a.halves()
	err = errors.Join(err, e)
	for _, v := range halves {
		if v.Attachment.Network == a.network.Name || bootclock.Now()-v.Since > settled {
			gone = append(gone, &ecs.Binding{Attachment: v.Attachment, Since: v.Since})
		}
	}
	for _, b := range gone {
		e := a.del(ctx, b.Attachment, "", b.Since+1)
		again, e2 := a.binding(b.Attachment)
		if e = errors.Join(e, e2); e == nil && again == nil {
			freed = append(freed, b)
		}
		err = errors.Join(err, e)
	}
	return freed, err
}

// gone are those of the bindings whose network namespace is gone.
func (a *Attacher) gone(of func(*ecs.Binding) bool) (gone []*ecs.Binding, err error) {
	s, err := a.bindings.Snapshot()
	if err != nil {
		return nil, err
	}
	attached, err := a.veths()
	if err != nil {
		return nil, err
	}
	for _, b := range s.All() {
		if _, ok := attached[b.Attachment]; ok || !of(b) {
			continue
		}
		is, e := isGone(b, time.Now())
		if is {
			gone = append(gone, b)
		}
		err = errors.Join(err, e)
	}
	return gone, err
}

// halves are the veths without a binding whose task has no address either. Those of our
// network that are found while the lock is held, and nothing is being done to their
// containers, are what killed plugins have left; others may be of an ADD that goes on.
func (a *Attacher) halves() (halves []link.Veth, err error) {
	unbound, err := a.unbound()
	if err != nil || len(unbound) == 0 {
		return nil, err
	}
	_, lost, err := Survey(a.places()...)
	for _, v := range lost {
		if _, ok := unbound[v.Attachment]; ok {
			halves = append(halves, v)
		}
	}
	return halves, err
}

// unbound are the veths without a binding that are ours to look after, by attachment.
func (a *Attacher) unbound() (map[ecs.Attachment]link.Veth, error) {
	unbound, err := a.veths()
	if err != nil || len(unbound) == 0 {
		return nil, err
	}
	s, err := a.bindings.Snapshot() // after the veths: an ADD may be at work
	if err != nil {
		return nil, err
	}
	for _, b := range s.All() {
		delete(unbound, b.Attachment)
	}
	maps.DeleteFunc(unbound, func(_ ecs.Attachment, v host) bool { return !a.ours(v) })
	veths := make(map[ecs.Attachment]link.Veth, len(unbound))
	for key, v := range unbound {
		veths[key] = v.Veth
	}
	return veths, nil
}

// ours reports whether a veth without a binding belongs to this bindings file: another, with
// a bridge of its own, may be kept on the same host. One that lost its bridge is ours if
// something else says so.
func (a *Attacher) ours(v host) bool {
	if v.bridge != "" {
		return slices.Contains(a.bridges, v.bridge)
	}
	return exists(a.mark(v.Attachment)) || exists(a.cached(v.Attachment))
}

// A host is the host end of a veth pair, with the name of its bridge, if it has one.
type host struct {
	link.Veth
	bridge string
}

// veths are those of all attachments. The kernel removes a pair with the namespace of either
// end.
func (a *Attacher) veths() (map[ecs.Attachment]host, error) {
	attached := make(map[ecs.Attachment]host)
	for _, ns := range a.places() {
		if err := addVeths(attached, ns); err != nil {
			return nil, err
		}
	}
	return attached, nil
}

func addVeths(to map[ecs.Attachment]host, ns *netns.NS) error {
	place, err := link.Open(ns)
	if err != nil {
		return err
	}
	defer place.Close()
	all, err := place.Veths()
	if err != nil {
		return err
	}
	names := map[int]string{0: ""}
	for _, v := range all {
		if v.Name != link.HostName(v.Attachment) { // whoever can make a link can give it any alias
			continue
		}
		if _, known := names[v.Bridge]; !known {
			bridge, err := place.LinkAt(v.Bridge)
			if err != nil {
				bridge.Name = "" // it is gone since
			}
			names[v.Bridge] = bridge.Name
		}
		to[v.Attachment] = host{v, names[v.Bridge]}
	}
	return nil
}

// isGone reports whether the namespace of a binding without a veth is gone: there is none
// at its path, or another one, which shows by its inode or by the lack of the address. One
// that is being attached at this moment hasn't got that yet.
func isGone(b *ecs.Binding, now time.Time) (bool, error) {
	has, err := link.Addresses(b.Netns)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if id, e := netns.Identify(b.Netns); e == nil && b.NetnsID != 0 && id.Ino != b.NetnsID {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for %s: %w", b.Attachment, err)
	}
	for _, addr := range has {
		if b.Has(addr.Addr()) {
			return false, nil
		}
	}
	return now.Sub(b.Created) > settled, nil
}
