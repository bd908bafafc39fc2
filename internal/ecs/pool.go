package ecs

import (
	"fmt"
	"math"
	"net/netip"
)

// DefaultSubnet is the one that addresses are given of where no other is configured.
var DefaultSubnet = netip.MustParsePrefix("169.254.172.0/22")

// A Pool is a subnet less what is never granted from it: the network address, which in
// IPv6 is every router's; the IPv4 broadcast address; the gateway; and [EndpointAddr].
type Pool struct {
	Subnet  netip.Prefix
	Gateway netip.Addr
}

// NewPool checks that subnet leaves addresses to grant. An invalid gateway stands for the
// subnet's first address after the network's own.
func NewPool(subnet netip.Prefix, gateway netip.Addr) (Pool, error) {
	switch {
	case subnet != subnet.Masked():
		return Pool{}, fmt.Errorf("%s is an address in %s, not a subnet", subnet, subnet.Masked())
	case subnet.Addr().BitLen()-subnet.Bits() < 2:
		return Pool{}, fmt.Errorf("%s has no address to grant: /%d is the smallest subnet that has", subnet, subnet.Addr().BitLen()-2)
	}
	p := Pool{Subnet: subnet, Gateway: gateway}
	if !gateway.IsValid() {
		p.Gateway = subnet.Addr().Next()
	}
	if !subnet.Contains(p.Gateway) || p.edge(p.Gateway) {
		return Pool{}, fmt.Errorf("%s is not an address that a gateway in %s can have", p.Gateway, subnet)
	}
	return p, nil
}

// Grantable reports whether addr may be granted to an attachment at all.
func (p Pool) Grantable(addr netip.Addr) bool {
	return p.Subnet.Contains(addr) && !p.edge(addr) && addr != p.Gateway && addr != EndpointAddr
}

// edge reports whether addr is the network or the IPv4 broadcast address.
func (p Pool) edge(addr netip.Addr) bool {
	return addr == p.Subnet.Addr() || addr.Is4() && !p.Subnet.Contains(addr.Next())
}

// Count is the number of addresses that may be granted, [math.MaxUint64] for more.
func (p Pool) Count() uint64 {
	host := p.Subnet.Addr().BitLen() - p.Subnet.Bits()
	if host >= 64 {
		return math.MaxUint64
	}
	n := uint64(1)<<host - 2 // the network and the gateway
	if p.Subnet.Addr().Is4() {
		n-- // the broadcast address
	}
	if p.Subnet.Contains(EndpointAddr) && EndpointAddr != p.Gateway && !p.edge(EndpointAddr) {
		n--
	}
	return n
}

// Next returns the first address after last that may be granted and that taken does not
// report, wrapping once; [ErrPoolFull] if none. A last that is not in the subnet, or not
// valid, starts at the beginning.
func (p Pool) Next(last netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	if !p.Subnet.Contains(last) {
		last = p.Subnet.Addr()
	}
	for addr := last.Next(); ; addr = addr.Next() {
		if !p.Subnet.Contains(addr) {
			addr = p.Subnet.Addr()
		}
		if p.Grantable(addr) && !taken(addr) {
			return addr, nil
		}
		if addr == last {
			return netip.Addr{}, ErrPoolFull
		}
	}
}
