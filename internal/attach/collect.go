package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// settled is how old a binding must be for its namespace to have its address: longer than
// an ADD may take.
const settled = time.Minute

// Collect frees the bindings of all networks whose network namespace is gone, and returns
// them.
func (a *Attacher) Collect(ctx context.Context) (freed []*ecs.Binding, err error) {
	free, err := a.lock(ctx, exclusive)
	if err != nil {
		return nil, err
	}
	defer free()
	gone, err := a.gone(func(b *ecs.Binding) bool { return b.Network != "" }) // what AWS's plugin recorded names no namespace
	for _, b := range gone {
		e := a.del(ctx, b.Attachment, "")
		if e == nil {
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
	attached, err := veths(a.Netns)
	if err != nil {
		return nil, err
	}
	for _, b := range s.All() {
		if !of(b) || attached[b.Attachment] {
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

// veths are the attachments that have a veth pair. The kernel removes a pair with the
// namespace of either end.
func veths(ns *netns.NS) (map[ecs.Attachment]bool, error) {
	host, err := link.Open(ns)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	all, err := host.Veths()
	if err != nil {
		return nil, err
	}
	attached := make(map[ecs.Attachment]bool, len(all))
	for _, v := range all {
		attached[v.Attachment] = true
	}
	return attached, nil
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
