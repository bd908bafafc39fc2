package main

import (
	"net/netip"

	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

func addressesOf(pid int) ([]netip.Addr, error) {
	found, err := link.Addresses(netns.Path(pid))
	addrs := make([]netip.Addr, len(found))
	for i, a := range found {
		addrs[i] = a.Addr()
	}
	return addrs, err
}
