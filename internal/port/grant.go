package port

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/link"
)

// A Grant is what the IPAM plugin gave.
type Grant struct {
	Result   *current.Result
	Addrs    []netip.Prefix
	Gateways []netip.Prefix // of the same subnets
	Routes   []link.Route
}

// NewGrant reads a result.
func NewGrant(result *current.Result) (Grant, error) {
	if len(result.IPs) == 0 {
		return Grant{}, errors.New("it has no address: expected one at least")
	}
	g := Grant{Result: result}
	for _, ip := range result.IPs {
		if ip == nil {
			return Grant{}, errors.New("an address is null")
		}
		addr, ok := prefix(ip.Address)
		if !ok {
			return Grant{}, fmt.Errorf("%s is no address in a subnet", ip.Address.String())
		}
		gateway, ok := netip.AddrFromSlice(ip.Gateway)
		if !ok {
			return Grant{}, fmt.Errorf("the address %s has no gateway: expected one, for the bridge to have", addr)
		}
		if gateway = gateway.Unmap(); gateway.Is4() != addr.Addr().Is4() {
			return Grant{}, fmt.Errorf("the address %s has the gateway %s: expected one of its own family", addr, gateway)
		}
		g.Addrs = append(g.Addrs, addr)
		g.Gateways = append(g.Gateways, netip.PrefixFrom(gateway, addr.Bits()))
	}
	for _, r := range result.Routes {
		if r == nil {
			return Grant{}, errors.New("a route is null")
		}
		route, err := g.route(r)
		if err != nil {
			return Grant{}, err
		}
		g.Routes = append(g.Routes, route)
	}
	return g, nil
}

// route converts a route. Without a gateway of its own it has the first of its family, as
// CNI's plugins understand it.
func (g Grant) route(r *types.Route) (link.Route, error) {
	dst, ok := prefix(r.Dst)
	if !ok {
		return link.Route{}, fmt.Errorf("%s is no destination of a route", r.Dst.String())
	}
	out := link.Route{Dst: dst, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Scope: r.Scope}
	if r.Table != nil {
		out.Table = *r.Table
	}
	if gateway, ok := netip.AddrFromSlice(r.GW); ok {
		out.Gateway = gateway.Unmap()
		return out, nil
	}
	for _, gateway := range g.Gateways {
		if gateway.Addr().Is4() == dst.Addr().Is4() {
			out.Gateway = gateway.Addr()
			break
		}
	}
	return out, nil
}

// prefix converts an address with its mask.
func prefix(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	addr = addr.Unmap()
	if !ok || bits != addr.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones), true
}
