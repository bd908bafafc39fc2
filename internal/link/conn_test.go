package link

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

// passesFrames checks that the kernel has brought the interface's carrier into effect. A
// dump tells, and unlike other questions does not see to it.
func passesFrames(t *testing.T, name string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if a := l.Attrs(); a.Name == name && a.OperState != netlink.OperUp {
			t.Errorf("%s is up, and %s", name, a.OperState)
		}
	}
}

// Who waits for a carrier that comes later is woken by it.
func TestAwaitUpWaitsForTheCarrier(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	task, err := OpenTask(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer task.Close()
	onHost(t, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		v, err := h.MakeVeth(task, attachment, b, 1500, bootclock.Now(), "strict")
		if err != nil {
			return err
		}
		if err := h.Do(setUp(v.Name)); err != nil {
			return err
		}
		later := make(chan error, 1)
		time.AfterFunc(100*time.Millisecond, func() {
			later <- task.SetUp(Interface{Name: attachment.IfName, MAC: ecs.MAC(netip.MustParseAddr("169.254.172.2"))})
		})
		err = errors.Join(h.awaitUp(v.Name), <-later)
		passesFrames(t, v.Name)
		return err
	})
}
