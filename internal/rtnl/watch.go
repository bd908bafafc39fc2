package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
)

// Events is a socket that hears of changes in a namespace.
type Events struct {
	file *os.File
	raw  syscall.RawConn
}

// Subscribe hears of changes of these multicast groups (RTNLGRP_LINK, …) of a protocol.
func Subscribe(ns *netns.NS, protocol int, groups ...int) (*Events, error) {
	fd, err := ns.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("subscribing to changes: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, group := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	raw, rawErr := file.SyscallConn()
	if err = errors.Join(err, rawErr); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("subscribing to changes: %w", err)
	}
	return &Events{file, raw}, nil
}

// Close ends the subscription, and a wait for the next change.
func (e *Events) Close() error { return e.file.Close() }

// Next waits for a change until the deadline, or without end where that is zero. None of the
// messages and no error say that changes were lost: there were more than the socket holds.
// Errors: [os.ErrDeadlineExceeded], [os.ErrClosed].
func (e *Events) Next(deadline time.Time) (messages []syscall.NetlinkMessage, err error) {
	if err := e.file.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	waited := e.raw.Read(func(fd uintptr) bool {
		messages, err = receive(int(fd))
		return !errors.Is(err, unix.EAGAIN)
	})
	if waited != nil {
		return nil, waited
	}
	if errors.Is(err, unix.ENOBUFS) {
		return nil, nil
	}
	return messages, err
}

// Watch reports changes of these groups: those that about says count, or all where it is
// nil. Any number of changes that the receiver has not looked at are one, and changes that
// were lost are one. The channel is closed when ctx ends, or when the kernel can no longer
// be listened to.
func Watch(ctx context.Context, ns *netns.NS, about func(syscall.NetlinkMessage) bool, protocol int, groups ...int) (<-chan struct{}, error) {
	events, err := Subscribe(ns, protocol, groups...)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = events.Close() })
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		defer events.Close()
		for {
			messages, err := events.Next(time.Time{})
			if err != nil {
				return
			}
			counts := about == nil || messages == nil
			for _, m := range messages {
				counts = counts || about(m)
			}
			if !counts {
				continue
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}
