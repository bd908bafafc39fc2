package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Port is an interface that a bridge forwards for.
type Port struct {
	Name  string
	Index int
	// Veth is nil for a port that does not say that it is an attachment's.
	Veth *Veth
}

// Ports lists the ports of the bridge.
func (h *Host) Ports(b Bridge) ([]Port, error) {
	links, err := consistent(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	var ports []Port
	for _, l := range links {
		a := l.Attrs()
		if a.MasterIndex != b.Index {
			continue
		}
		p := Port{Name: a.Name, Index: a.Index}
		if v, ok := veth(l); ok {
			p.Veth = &v
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// Watch reports that links or IPv4 addresses of the caller's network namespace have
// changed: bridges removed or made again, ports come or gone. What has changed is for the
// receiver to look at; any number of changes that it has not yet looked at are one. The
// channel is closed when ctx ends, or when the kernel can no longer be listened to.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, fmt.Errorf("subscribing to changes of links: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		defer func() {
			if stop() {
				s.Close()
			}
		}()
		for {
			// ENOBUFS: more has changed than fitted in the socket's buffer.
			if _, _, err := s.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}
