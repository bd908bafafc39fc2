package link

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// A Port is an interface that a bridge forwards for.
type Port struct {
	Name  string
	Kind  string // veth, …; "" for a network card
	Index int
	// Veth is nil for a port that does not say that it is an attachment's.
	Veth *Veth
}

// Ports lists the ports of the bridge.
func (h *Host) Ports(b Bridge) ([]Port, error) {
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	var ports []Port
	for _, l := range links {
		if l.Master != b.Index {
			continue
		}
		p := Port{Name: l.Name, Kind: l.Kind, Index: l.Index}
		if v, ok := veth(l); ok {
			p.Veth = &v
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// Watch reports that links, addresses or neighbours of a network namespace have changed:
// bridges removed or made again, ports come or gone. It is [rtnl.Watch] of those groups.
func Watch(ctx context.Context, ns *netns.NS, about func(syscall.NetlinkMessage) bool) (<-chan struct{}, error) {
	return rtnl.Watch(ctx, ns, about, unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_NEIGH)
}
