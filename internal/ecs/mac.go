package ecs

import (
	"bytes"
	"hash/fnv"
	"net"
	"net/netip"
)

// The first bytes of the hardware addresses that [MAC] derives, from IPv4 by the custom of
// CNI plugins, and from IPv6.
var mac4, mac6 = net.HardwareAddr{0x0a, 0x58}, net.HardwareAddr{0x0a, 0x59}

// MAC derives an interface's hardware address from its first IP address, so that a task
// that gets an address later than another has the MAC that goes with it. IPv4 has its four
// bytes in it; IPv6 a hash, since the last bytes alone repeat from one subnet to the next.
func MAC(addr netip.Addr) net.HardwareAddr {
	if addr.Is4() {
		return append(bytes.Clone(mac4), addr.AsSlice()...)
	}
	h := fnv.New32a()
	h.Write(addr.AsSlice())
	return h.Sum(bytes.Clone(mac6))
}

// IsMAC reports whether a hardware address may be one that [MAC] derived.
func IsMAC(mac net.HardwareAddr) bool {
	return bytes.HasPrefix(mac, mac4) || bytes.HasPrefix(mac, mac6)
}
