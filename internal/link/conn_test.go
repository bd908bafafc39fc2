package link

import (
	"context"
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

// A bridge that an administrator made and set up has a carrier that never changed, for which
// the kernel has no state: "unknown". There is nothing to wait for.
func TestBridgeOfAnAdministratorIsUp(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string][]string{
		"up":                                  {"link add name br0 type bridge", "link set br0 up"},
		"down":                                {"link add name br0 type bridge"},
		"down, with a MAC address of its own": {"link add name br0 address 02:00:00:00:00:09 type bridge"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, ns := testnet.T(t), testnet.T(t)
			for _, line := range lines {
				runIP(t, host, line)
			}
			task, err := OpenTask(ns.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer task.Close()
			in(t, host, func(h *Host) error {
				b, err := h.EnsureBridge("br0", 1500)
				if err != nil {
					return err
				}
				v, err := h.MakeVeth(task, attachment, b, 1500, bootclock.Now(), "strict")
				if err != nil {
					return err
				}
				started := time.Now()
				if err := errors.Join(h.EnsureAddr(b, gateways[0]), task.SetUp(wanted), h.SetUp(v, b), task.Configure(wanted)); err != nil {
					return err
				}
				if took := time.Since(started); took >= carrierTime {
					t.Errorf("took %s, as long as is waited for a carrier", took)
				}
				return nil
			})
			l, err := host.Listen("tcp", "169.254.172.1:80")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			c, err := ns.DialContext(ctx, "tcp", "169.254.172.1:80")
			if err != nil {
				t.Fatal("the first packet is lost: ", err)
			}
			c.Close()
		})
	}
}
