package main

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// listeners are the addresses at which TCP sockets of the calling thread's network namespace
// listen.
func listeners() ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return nil, fmt.Errorf("listing the TCP sockets (the kernel must have CONFIG_INET_DIAG): %w", err)
		}
		for _, s := range sockets {
			if addr, ok := netip.AddrFromSlice(s.ID.Source); ok && s.State == netlink.TCP_LISTEN {
				all = append(all, netip.AddrPortFrom(addr.Unmap(), s.ID.SourcePort))
			}
		}
	}
	return all, nil
}
