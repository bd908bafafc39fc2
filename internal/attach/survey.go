package attach

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// Survey returns the bindings that the host's veths and the network namespaces bear out:
// attachment, addresses, namespace and time. What a runtime said of the task is not in
// them. Where a port is guarded, its addresses are those that the guard lets out, since a
// task may have given itself others. The veths are those of the places, in one of which the
// bridge stands. Lost are the veths whose addresses were not found.
func Survey(places ...*netns.NS) (found []ecs.Binding, lost []link.Veth, err error) {
	for i, ns := range places {
		if slices.ContainsFunc(places[:i], func(before *netns.NS) bool { return before.ID() == ns.ID() }) {
			continue
		}
		if err := surveyPlace(ns, places, &found, &lost); err != nil {
			return nil, nil, err
		}
	}
	return found, lost, nil
}

func surveyPlace(ns *netns.NS, places []*netns.NS, found *[]ecs.Binding, lost *[]link.Veth) error {
	host, err := link.Open(ns)
	if err != nil {
		return err
	}
	defer host.Close()
	veths, err := host.Veths()
	if err != nil || len(veths) == 0 {
		return err
	}
	ends, err := taskEnds(host, places)
	if err != nil {
		return err
	}
	now, clock := time.Now().UTC(), bootclock.Now()
	for _, v := range veths {
		b := ecs.Binding{Attachment: v.Attachment, Created: now.Add(v.Since - clock), Since: v.Since}
		if i := slices.IndexFunc(ends, func(e end) bool { return e.of(v) }); i >= 0 {
			b.Netns, b.NetnsID, b.Addrs = ends[i].Path, ends[i].Ino, ends[i].Addrs
		}
		guarded, err := guard.Addrs(host.Conn, v.Name)
		if err != nil {
			return err
		}
		if len(guarded) > 0 {
			b.Addrs = only(guarded, b.Addrs)
		}
		if len(b.Addrs) == 0 {
			*lost = append(*lost, v)
			continue
		}
		*found = append(*found, b)
	}
	return nil
}

// only returns addrs, each with the length of its subnet where that is in has.
func only(addrs []netip.Addr, has []netip.Prefix) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(addrs))
	for i, addr := range addrs {
		prefixes[i] = netip.PrefixFrom(addr, addr.BitLen())
		for _, p := range has {
			if p.Addr() == addr {
				prefixes[i] = p
			}
		}
	}
	return prefixes
}

// An end is a task's end of a veth pair.
type end struct {
	link.Peer
	netns.Ref
}

// of reports whether it is the other end of v. An index is unique in one namespace only.
func (e end) of(v link.Veth) bool { return e.Other == v.Index && e.Netns == v.TaskNetns }

// taskEnds finds the ends of veth pairs in all network namespaces but the places.
func taskEnds(host *link.Host, places []*netns.NS) ([]end, error) {
	all, err := netns.List()
	if err != nil {
		return nil, err
	}
	var ends []end
	for _, ns := range all {
		if slices.ContainsFunc(places, func(place *netns.NS) bool { return place.ID() == ns.ID }) {
			continue
		}
		peers, err := host.Peers(ns.Path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
			continue // it ended meanwhile, and what it was mounted on may be there still
		}
		if err != nil {
			return nil, err
		}
		for _, p := range peers {
			ends = append(ends, end{p, ns})
		}
	}
	return ends, nil
}
