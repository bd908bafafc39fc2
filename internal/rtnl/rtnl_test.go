package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

// open opens a socket in a namespace, in which the caller is not.
func open(t testing.TB, host *testnet.Namespace) *Conn {
	t.Helper()
	ns, err := netns.Open(host.Path())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), ns.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// addVeth is the step that makes a veth pair.
func addVeth(name string) Step {
	kind := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	kind.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	return NewStep(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "making "+name,
		nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)), kind)
}

func delLink(name string) Step {
	return NewStep(unix.RTM_DELLINK, 0, "removing "+name, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
}

func TestTryTellsWhatBecameOfEachStep(t *testing.T) {
	t.Parallel()
	c := open(t, testnet.T(t))
	fine := addVeth("one")
	fine.Fine = unix.EEXIST
	got := c.Try(addVeth("one"), addVeth("one"), fine, addVeth("two"), delLink("none"))
	if len(got) != 5 || got[0] != nil || !errors.Is(got[1], unix.EEXIST) || got[2] != nil || got[3] != nil || !errors.Is(got[4], unix.ENODEV) {
		t.Errorf("got %v", got)
	}
	for _, name := range []string{"one", "two"} {
		if l, err := c.Link(name); err != nil || l.Name != name || l.Kind != "veth" {
			t.Errorf("%s is %+v, %v", name, l, err)
		}
	}
	if err := c.Do(); err != nil {
		t.Errorf("nothing to do: %v", err)
	}
}

// The kernel says in words what is wrong, where it can.
func TestAnErrorHasTheKernelsText(t *testing.T) {
	t.Parallel()
	c := open(t, testnet.T(t))
	err := c.Do(NewAddr(1, netip.MustParsePrefix("169.254.172.1/22"), 0, 0), NewAddr(1, netip.MustParsePrefix("169.254.172.1/22"), 0, 0))
	if !errors.Is(err, unix.EEXIST) || !strings.HasPrefix(err.Error(), "adding address 169.254.172.1/22: file exists (") {
		t.Errorf("got %v; want what was done, the error, and the kernel's text", err)
	}
}

// A list is whole though interfaces come and go while it is read: one of which the kernel
// says that it may not be is asked for again, which the number of the step tells.
func TestListsAreWhole(t *testing.T) {
	t.Parallel()
	host := testnet.T(t)
	c, other := open(t, host), open(t, host)
	var want []string
	for i := range 60 {
		name := fmt.Sprintf("stays%d", i)
		if err := c.Do(addVeth(name)); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changing := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			err = other.Do(addVeth("goes"), delLink("goes"))
		}
		changing <- err
	}()
	deadline, again := time.Now().Add(time.Minute), false
	for i := 0; i < 50 || !again; i++ {
		if time.Now().After(deadline) {
			t.Fatal("no list was read again")
		}
		before := c.seq
		links, err := c.Links()
		again = again || c.seq > before+1
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range links {
			if strings.HasPrefix(l.Name, "stays") {
				got = append(got, l.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("listed %d interfaces of %d: %q", len(got), len(want), got)
		}
	}
	cancel()
	if err := <-changing; err != nil {
		t.Error(err)
	}
}

// A process with CAP_NET_ADMIN in the namespace, such as a task's, can send to any socket
// there. What it says is not taken for the kernel's answer.
func TestOnlyTheKernelAnswers(t *testing.T) {
	t.Parallel()
	host := testnet.T(t)
	c, forger := open(t, host), open(t, host)
	if _, err := c.Link("lo"); err != nil {
		t.Fatal(err)
	}
	self, err := unix.Getsockname(c.fd)
	if err != nil {
		t.Fatal(err)
	}
	forged := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+4)
	forged = binary.NativeEndian.AppendUint16(forged, unix.NLMSG_ERROR)
	forged = append(forged, 0, 0)
	forged = binary.NativeEndian.AppendUint32(forged, c.seq+1)
	forged = append(forged, 0, 0, 0, 0)
	forged = binary.NativeEndian.AppendUint32(forged, uint32(0xffffffff-uint32(unix.EBUSY)+1))
	if err := unix.Sendto(forger.fd, forged, 0, self); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Link("lo"); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestNeighboursAndAddresses(t *testing.T) {
	t.Parallel()
	c := open(t, testnet.T(t))
	if err := c.Do(addVeth("one")); err != nil {
		t.Fatal(err)
	}
	l, err := c.Link("one")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Prefix{netip.MustParsePrefix("169.254.172.1/22"), netip.MustParsePrefix("fd00:ec2::1/64")} {
		n := Neighbour{Index: l.Index, Addr: addr.Addr().Next(), MAC: []byte{2, 0, 0, 0, 0, 1}, State: unix.NUD_PERMANENT}
		if err := c.Do(NewAddr(l.Index, addr, unix.IFA_F_NODAD, 0), n.Set("entering it"), n.Set("again")); err != nil {
			t.Fatal(err)
		}
		has, err := c.Addrs(l.Index)
		if err != nil || !slices.Contains(has, Addr{addr, l.Index, true, 0}) {
			t.Errorf("the addresses are %v, %v; want %s", has, err, addr)
		}
		found, err := c.Neighbour(Neighbour{Index: l.Index, Addr: n.Addr})
		all, listErr := c.Neighbours(unix.AF_UNSPEC)
		listed := slices.ContainsFunc(all, func(of Neighbour) bool { return of.Addr == n.Addr && of.MAC.String() == n.MAC.String() })
		if err := errors.Join(err, listErr); err != nil || found.MAC.String() != n.MAC.String() || found.State != n.State || !listed {
			t.Errorf("the neighbour is %+v of %+v, %v", found, all, err)
		}
		if err := c.Do(n.Del("deleting it"), DelAddr(l.Index, addr)); err != nil {
			t.Fatal(err)
		}
		if found, err := c.Neighbour(Neighbour{Index: l.Index, Addr: n.Addr}); !errors.Is(err, unix.ENOENT) {
			t.Errorf("after it was deleted: %+v, %v", found, err)
		}
	}
}

func TestWatchHearsOfTheNamedNamespace(t *testing.T) {
	t.Parallel()
	caller, named := testnet.T(t), testnet.T(t)
	c, other := open(t, named), open(t, caller)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var changed <-chan struct{}
	err := caller.Do(func() (err error) {
		changed, err = Watch(ctx, c.NS, nil, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Do(addVeth("elsewhere")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
		t.Error("heard of a change elsewhere")
	case <-time.After(50 * time.Millisecond):
	}
	if err := c.Do(addVeth("here")); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-changed; !ok {
		t.Error("heard of no change")
	}
	cancel()
	for range changed { // it is closed then
	}
}

// What this package reads of interfaces is what another reader of them finds.
func TestLinksAreAsOthersReadThem(t *testing.T) {
	t.Parallel()
	host := testnet.T(t)
	c := open(t, host)
	h, err := host.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := h.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one", MasterIndex: bridge.Index}, PeerName: "two"}); err != nil {
		t.Fatal(err)
	}
	links, err := c.Links()
	if err != nil {
		t.Fatal(err)
	}
	want, err := h.LinkList()
	if err != nil || len(links) != len(want) {
		t.Fatalf("%d interfaces; want %d, %v", len(links), len(want), err)
	}
	for i, l := range links {
		a := want[i].Attrs()
		if l.Name != a.Name || l.Index != a.Index || l.Master != a.MasterIndex || l.Peer != a.ParentIndex || l.PeerNetns != a.NetNsID ||
			!l.Loopback && l.MAC.String() != a.HardwareAddr.String() || l.Passes != (a.OperState == netlink.OperUp || l.Loopback) || (l.Port != nil) != (a.MasterIndex != 0) || len(l.Counters) < 64 {
			t.Errorf("%+v; want %+v", l, a)
		}
		if at, err := c.LinkAt(l.Index); err != nil || at.Name != l.Name {
			t.Errorf("by its index: %+v, %v", at, err)
		}
	}
}
