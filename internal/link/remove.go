package link

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Bridges are those that were made here, and those of others that have an address of ours.
func (h *Host) Bridges() ([]Bridge, error) {
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	var all []Bridge
	for _, l := range links {
		if l.Kind != "bridge" {
			continue
		}
		b := newBridge(l)
		given, err := h.GivenAddrs(b)
		if err != nil {
			return nil, err
		}
		if b.Made() || len(given) > 0 {
			all = append(all, b)
		}
	}
	return all, nil
}

// GivenAddrs are the addresses of the bridge that were given here. On a kernel that does not
// keep who gave one (before 5.18), it is [Endpoint] alone that says so itself.
func (h *Host) GivenAddrs(b Bridge) ([]netip.Prefix, error) {
	all, err := h.Addrs(b.Index)
	var given []netip.Prefix
	for _, a := range all {
		if a.Proto == addrProto || a.Prefix == Endpoint {
			given = append(given, a.Prefix)
		}
	}
	return given, err
}

// PrivateBridges are the names of the bridges for which [Host.EnsurePrivate] has made rules,
// be they there or not.
func (h *Host) PrivateBridges() (names []string, err error) {
	rules, err := h.Rules()
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without rules
	}
	for _, r := range rules {
		if r.In != "" && r.Priority == privatePriority && r.Table == tablesOf(r.In).in && !slices.Contains(names, r.In) {
			names = append(names, r.In)
		}
	}
	return names, err
}
