package main

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// What runs in a task while it is attached can ask as soon as there is a route. By then
// the way is open, or the question would be lost and asked again a second later: the
// kernel has brought the carrier of the veth pair into effect, and that of a bridge of
// which the task is the only one.
func TestRouteComesWhenTheWayIsOpen(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for range 5 {
		task := testnet.T(t)
		var events *nl.NetlinkSocket
		err := task.Do(func() (err error) {
			events, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer events.Close()
		limit := unix.NsecToTimeval((30 * time.Second).Nanoseconds())
		if err := events.SetReceiveTimeout(&limit); err != nil {
			t.Fatal(err)
		}
		added := make(chan error, 1)
		go func() {
			_, err := h.run(h.call("ADD", "c1", task.Path(), conf()))
			added <- err
		}()
		awaitRoute(t, events)
		var links []netlink.Link
		err = h.Do(func() (err error) {
			for links == nil || errors.Is(err, netlink.ErrDumpInterrupted) {
				links, err = netlink.LinkList() // which tells how it is, and changes nothing
				if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if a := l.Attrs(); a.Flags&net.FlagLoopback == 0 && a.OperState != netlink.OperUp {
				t.Errorf("%s is %s when the task has its route", a.Name, a.OperState)
			}
		}
		if err := <-added; err != nil {
			t.Fatal(err)
		}
		h.must(t, "DEL", "c1", task.Path(), conf())
	}
}

// awaitRoute waits for the route to the endpoint.
func awaitRoute(t *testing.T, events *nl.NetlinkSocket) {
	t.Helper()
	for {
		messages, _, err := events.Receive()
		if err != nil {
			t.Fatal("waiting for the task's route: ", err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.RTM_NEWROUTE && bytes.Contains(m.Data, []byte{169, 254, 170, 2}) {
				return
			}
		}
	}
}
