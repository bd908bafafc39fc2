package main

import (
	"fmt"
	"net/netip"

	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
)

// netnsOf is the path of the network namespace that a process lives in.
func netnsOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

func addressesOf(pid int) ([]netip.Addr, error) {
	found, err := link.Addresses(netnsOf(pid))
	addrs := make([]netip.Addr, len(found))
	for i, a := range found {
		addrs[i] = a.Addr()
	}
	return addrs, err
}

func countersOf(pid int) (map[string]ecs.Counters, error) {
	found, err := link.AllCounters(netnsOf(pid))
	counters := make(map[string]ecs.Counters, len(found))
	for _, c := range found {
		counters[c.IfName] = ecs.Counters{
			RxBytes: c.RxBytes, RxPackets: c.RxPackets, RxErrors: c.RxErrors, RxDropped: c.RxDropped,
			TxBytes: c.TxBytes, TxPackets: c.TxPackets, TxErrors: c.TxErrors, TxDropped: c.TxDropped,
		}
	}
	return counters, err
}
