package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

// A Host acts in the namespace that it was opened with. The caller's own, which has
// interfaces of the same names, stays as it was.
func TestHostActsInTheNamedNamespace(t *testing.T) {
	t.Parallel()
	caller, named := testnet.T(t), testnet.T(t)
	ns, err := netns.Open(named.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	task, ctx := openTask(t), t.Context()
	runIP(t, caller, "link add br0 type bridge")
	runIP(t, caller, "link add "+HostName(attachment)+" type veth peer peer0")
	before := settings(t, caller)
	err = caller.Do(func() error { return attach(ctx, t, ns, task) })
	if err != nil {
		t.Fatal(err)
	}
	if after := settings(t, caller); after != before {
		t.Errorf("the caller's namespace has %s; it had %s", after, before)
	}
	if got, want := settings(t, named), fmt.Sprintf("br0: 0; %s: 1; lo br0 %[1]s", HostName(attachment)); got != want {
		t.Errorf("the named one has %s; want %s", got, want)
	}
}

// attach does all that a Host can, and checks what it says.
func attach(ctx context.Context, t *testing.T, ns *netns.NS, task *Task) error {
	h, err := Open(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	changed, err := Watch(ctx, ns, nil)
	if err != nil {
		return err
	}
	b, err := h.EnsureBridge("br0", 1500)
	if err != nil {
		return err
	}
	if _, ok := <-changed; !ok {
		t.Error("no change seen of the bridge being made")
	}
	gateway := netip.MustParsePrefix("fd00:ec2::1/64") // IPv6 is turned on for it
	if err := errors.Join(h.EnsureAddr(b, Endpoint), h.EnsureAddr(b, gateway), h.CheckAddrs(b, Endpoint, gateway)); err != nil {
		return err
	}
	want := Interface{Name: attachment.IfName, MAC: ecs.MAC(netip.MustParseAddr("169.254.172.2")), Addrs: []netip.Prefix{netip.MustParsePrefix("169.254.172.2/22")}}
	for range 2 { // removed, and made again
		v, ok, err := h.Veth(attachment)
		if err == nil && ok {
			err = h.DelVeth(v, func() error { return nil })
		}
		if err == nil {
			v, err = h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict")
		}
		if err := errors.Join(err, task.SetUp(want), h.SetUp(v, b), task.Configure(want), task.Check(want)); err != nil {
			return err
		}
	}
	ports, err := h.Ports(b)
	if err != nil {
		return err
	}
	peers, err := h.Peers(fmt.Sprintf("/proc/self/fd/%d", task.NS.FD()))
	if len(ports) != 1 || len(peers) != 1 || peers[0].Other != ports[0].Index || peers[0].Netns != ports[0].Veth.TaskNetns {
		t.Errorf("the ports are %+v and their other ends %+v", ports, peers)
	}
	return err
}

// settings are the interfaces of a namespace, and whether IPv6 is off on those of our names.
func settings(t *testing.T, ns *testnet.Namespace) (all string) {
	t.Helper()
	err := ns.Do(func() error {
		for _, name := range []string{"br0", HostName(attachment)} {
			off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
			if err != nil {
				return err
			}
			all += fmt.Sprintf("%s: %s; ", name, off[:1])
		}
		names, err := links()
		all += names
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
