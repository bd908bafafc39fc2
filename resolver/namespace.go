package main

import (
	"net/netip"

	"taskmeta/internal/ecs"
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

func countersOf(pid int) (map[string]ecs.Counters, error) {
	found, err := link.AllCounters(netns.Path(pid))
	counters := make(map[string]ecs.Counters, len(found))
	for _, c := range found {
		counters[c.IfName] = ecs.Counters{
			RxBytes: c.RxBytes, RxPackets: c.RxPackets, RxErrors: c.RxErrors, RxDropped: c.RxDropped,
			TxBytes: c.TxBytes, TxPackets: c.TxPackets, TxErrors: c.TxErrors, TxDropped: c.TxDropped,
		}
	}
	return counters, err
}
