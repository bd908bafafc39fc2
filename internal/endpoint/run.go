package endpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

const (
	// checkInterval is the time between two looks at everything while the kernel reports no
	// change.
	checkInterval = 10 * time.Second
	// pinInterval is the time between two looks at the pin, of whose loss nobody tells.
	pinInterval = time.Second
	// minInterval is the least time between two looks. A look lists all links, and the
	// plugins that attach a thousand tasks at once would wait for it.
	minInterval = 100 * time.Millisecond
)

// Run restores the endpoint when the kernel reports a change, and every ten seconds, until
// ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	changes, err := k.watch(ctx)
	if err != nil {
		return err
	}
	tick, pin := time.NewTicker(checkInterval), time.NewTicker(pinInterval)
	defer tick.Stop()
	defer pin.Stop()
	for {
		var again <-chan time.Time
		if due := k.due(); due != 0 {
			again = time.After(due)
		}
		all := false
		select {
		case <-ctx.Done():
			return nil
		case lost := <-changes:
			if lost != nil && ctx.Err() == nil {
				return lost
			}
		case <-tick.C:
			all = true
		case <-pin.C:
			if k.isPinned() {
				continue
			}
		case <-again:
		}
		before := k.Err()
		if err := k.ensure(all); err != nil && before == nil {
			k.cfg.Logger.Error("the endpoint is gone, and tasks get no answer; making it again is tried at each change", "every", checkInterval, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(minInterval):
		}
	}
}

// watch tells of changes of the endpoint, and of ports that come to the host: nil for any
// number of them, or why it cannot tell any more.
func (k *Keeper) watch(ctx context.Context) (<-chan error, error) {
	changes := make(chan error, 1)
	follow := func(from <-chan struct{}, lost string) {
		for range from {
			select {
			case changes <- nil:
			default: // one is to come
			}
		}
		if ctx.Err() == nil {
			changes <- errors.New(lost)
		}
	}
	links, err := link.Watch(ctx, k.cfg.Netns, k.concerns)
	if err != nil {
		return nil, err
	}
	go follow(links, "the kernel no longer reports changes of links: start the resolver again")
	if k.onHost() {
		routes, err := link.WatchPrivate(ctx, k.cfg.Netns, k.cfg.Bridge)
		if err != nil {
			return nil, err
		}
		go follow(routes, "the kernel no longer reports changes of routes")
	}
	if k.cfg.Guard != guard.Off { // there may be no nftables to watch then
		rules, err := guard.Watch(ctx, k.cfg.Netns)
		if err != nil {
			return nil, err
		}
		go follow(rules, "the kernel no longer reports changes of nftables")
	}
	if k.onHost() {
		routes, err := link.WatchPrivate(ctx, k.cfg.Netns, k.cfg.Bridge)
		if err != nil {
			return nil, err
		}
		go follow(routes, "the kernel no longer reports changes of routes")
	} else {
		host, err := watchPorts(ctx, k.cfg.Host)
		if err != nil {
			return nil, err
		}
		go follow(host, "the kernel no longer reports changes of links: start the resolver again")
	}
	return changes, nil
}

// concerns reports whether a message is about the bridge or may be about a port: of the
// neighbours of others there may be many.
func (k *Keeper) concerns(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH {
		return true
	}
	if len(m.Data) < unix.SizeofNdMsg {
		return false
	}
	bridge := k.index.Load()
	if m.Data[0] != unix.AF_BRIDGE {
		return int64(binary.NativeEndian.Uint32(m.Data[4:])) == bridge
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofNdMsg:])
	for _, a := range attrs {
		if a.Attr.Type == unix.NDA_MASTER && len(a.Value) == 4 {
			return int64(binary.NativeEndian.Uint32(a.Value)) == bridge
		}
	}
	return err != nil
}

// watchPorts tells of links that may be ports of ours.
func watchPorts(ctx context.Context, ns *netns.NS) (<-chan struct{}, error) {
	return rtnl.Watch(ctx, ns, func(m syscall.NetlinkMessage) bool {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			return false
		}
		attrs, _ := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFALIAS {
				return true // others' aliases are rare
			}
		}
		return false
	}, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
}
