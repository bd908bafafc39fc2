package link

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

var attachment = ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "eth0"}

// onHost runs fn in a fresh namespace that stands for a host.
func onHost(t *testing.T, fn func(*Host) error) *testnet.Namespace {
	t.Helper()
	host := testnet.T(t)
	in(t, host, fn)
	return host
}

func in(t *testing.T, host *testnet.Namespace, fn func(*Host) error) {
	t.Helper()
	err := host.Do(func() error {
		h, err := OpenHost()
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func openTask(t *testing.T) *Task {
	t.Helper()
	task, err := OpenTask(testnet.T(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(task.Close)
	return task
}

// links names the interfaces of the calling thread's namespace.
func links() (string, error) {
	all, err := consistent(netlink.LinkList)
	var names []string
	for _, l := range all {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " "), err
}

func TestNamesFitAndDiffer(t *testing.T) {
	t.Parallel()
	seen := make(map[string]ecs.Attachment)
	for _, a := range []ecs.Attachment{
		attachment,
		{Network: "ecs-task", Container: "c1", IfName: "eth1"},
		{Network: "ecs-task", Container: "c2", IfName: "eth0"},
		{Network: "other", Container: "c1", IfName: "eth0"},
		{Network: "ecs-taskc1", Container: "", IfName: "eth0"},
		{Network: strings.Repeat("n", 100), Container: strings.Repeat("c", 100), IfName: "fifteen-bytes-x"},
	} {
		name := HostName(a)
		if len(name) != 15 {
			t.Errorf("%s has %d bytes, want 15", name, len(name))
		}
		if other, ok := seen[name]; ok {
			t.Errorf("%v and %v are both %s", a, other, name)
		}
		seen[name] = a
	}
}

func TestAliasTellsTheAttachment(t *testing.T) {
	t.Parallel()
	const now = 40*time.Hour + 1
	if a, since, guard, ok := parseAlias(alias(attachment, now, "source")); !ok || a != attachment || since != now || guard != "source" {
		t.Errorf("got %v, %v, %s, %v", a, since, guard, ok)
	}
	for _, foreign := range []string{"", "uplink", "taskmeta", "taskmeta a b c not-a-time strict", "taskmeta a b c 1", "taskmeta a b c 1 strict f"} {
		if _, _, _, ok := parseAlias(foreign); ok {
			t.Errorf("%q is taken for ours", foreign)
		}
	}
}

func TestBridgeIsMadeOnceByMany(t *testing.T) {
	t.Parallel()
	host := testnet.T(t)
	const makers = 16
	indices := make([]int, makers)
	errs := make([]error, makers)
	var all sync.WaitGroup
	for i := range makers {
		all.Go(func() {
			errs[i] = host.Do(func() error {
				h, err := OpenHost()
				if err != nil {
					return err
				}
				defer h.Close()
				b, err := h.EnsureBridge("br0", 1400)
				indices[i] = b.Index
				if err != nil {
					return err
				}
				return errors.Join(h.EnsureAddr(b, netip.MustParsePrefix("169.254.172.1/22")), h.EnsureAddr(b, Endpoint))
			})
		})
	}
	all.Wait()
	for i, err := range errs {
		if err != nil || indices[i] != indices[0] {
			t.Errorf("maker %d: bridge %d instead of %d, %v", i, indices[i], indices[0], err)
		}
	}
	in(t, host, func(h *Host) error {
		l, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if a := l.Attrs(); a.MTU != 1400 || a.HardwareAddr.String() != "0a:58:a9:fe:aa:02" {
			t.Errorf("MTU %d, MAC %s", a.MTU, a.HardwareAddr)
		}
		off, err := os.ReadFile("/proc/sys/net/ipv6/conf/br0/disable_ipv6")
		if string(off) != "1\n" {
			t.Errorf("disable_ipv6 is %q", off)
		}
		return err
	})
	addrs, err := Addresses(host.Path())
	if err != nil {
		t.Fatal(err)
	}
	want := []Address{{"br0", netip.MustParsePrefix("169.254.172.1/22")}, {"br0", netip.MustParsePrefix("169.254.170.2/32")}}
	if len(addrs) != 2 || addrs[0] != want[0] || addrs[1] != want[1] {
		t.Errorf("got %v, want %v", addrs, want)
	}
}

func TestBridgeOfAnotherMakerKeepsItsMAC(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
			return err
		}
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		// A bridge whose MAC was never set takes that of a port that has a lower one.
		low := netlink.LinkAttrs{Name: "low", HardwareAddr: []byte{2, 0, 0, 0, 0, 1}, MasterIndex: b.Index}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: low, PeerName: "peer"}); err != nil {
			return err
		}
		again, err := h.EnsureBridge("br0", 1500)
		if again.MAC.String() != b.MAC.String() {
			t.Errorf("the MAC went from %s to %s", b.MAC, again.MAC)
		}
		return err
	})
}

func TestBridgeRefusesWhatIsNone(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "br0"}, PeerName: "peer"}); err != nil {
			return err
		}
		if _, err := h.EnsureBridge("br0", 1500); err == nil || !strings.Contains(err.Error(), "br0 is a veth: expected a bridge") {
			t.Errorf("got %v", err)
		}
		return nil
	})
}

func TestBridgeAddresses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		add  []string
		want string // in the error
	}{
		"the same again":             {add: []string{"169.254.172.1/22", "169.254.172.1/22"}},
		"a second subnet":            {add: []string{"169.254.172.1/22", "10.9.0.1/24"}},
		"IPv6 after IPv4":            {add: []string{"169.254.172.1/22", "fd00:ec2::1/64"}},
		"another gateway":            {add: []string{"169.254.172.1/22", "169.254.172.9/22"}, want: "br0 has the address 169.254.172.1/22, whose subnet overlaps 169.254.172.9/22"},
		"the gateway, other subnet":  {add: []string{"169.254.172.1/22", "169.254.172.1/24"}, want: "overlaps"},
		"another gateway under IPv6": {add: []string{"fd00:ec2::1/64", "fd00:ec2::2/64"}, want: "overlaps"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := onHost(t, func(h *Host) error {
				b, err := h.EnsureBridge("br0", 1500)
				if err != nil {
					return err
				}
				for i, s := range test.add {
					err := h.EnsureAddr(b, netip.MustParsePrefix(s))
					if last := i == len(test.add)-1; last && test.want != "" {
						if err == nil || !strings.Contains(err.Error(), test.want) {
							t.Errorf("got %v, want %q", err, test.want)
						}
						test.add = test.add[:i]
					} else if err != nil {
						return err
					}
				}
				return nil
			})
			has, err := Addresses(host.Path())
			if err != nil {
				t.Fatal(err)
			}
			distinct := make(map[string]bool)
			for _, s := range test.add {
				distinct[s] = true
			}
			for _, a := range has {
				if !distinct[a.Prefix.String()] {
					t.Errorf("%s was not asked for", a)
				}
			}
			if len(has) != len(distinct) {
				t.Errorf("has %v, want %v", has, test.add)
			}
		})
	}
}

func TestPairConnectsTaskAndBridge(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	err := ns.Do(func() error { // as Docker does
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	task, err := OpenTask(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer task.Close()
	gateways := []netip.Prefix{netip.MustParsePrefix("169.254.172.1/22"), netip.MustParsePrefix("fd00:ec2::1/64")}
	scope := 200
	want := Interface{
		Name:  "eth0",
		MAC:   ecs.MAC(netip.MustParseAddr("169.254.172.2")),
		Addrs: []netip.Prefix{netip.MustParsePrefix("169.254.172.2/22"), netip.MustParsePrefix("fd00:ec2::2/64")},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("169.254.172.1/32")},
			{Dst: netip.MustParsePrefix("fd00:ec2::1/128")},
			{Dst: netip.MustParsePrefix("169.254.170.2/32"), Gateway: gateways[0].Addr()},
			{Dst: netip.MustParsePrefix("169.254.170.2/32"), Gateway: gateways[0].Addr()},
			{Dst: netip.MustParsePrefix("10.0.0.0/8"), Gateway: gateways[0].Addr(), Table: 1000, Priority: 7, MTU: 1400, AdvMSS: 1360},
			{Dst: netip.MustParsePrefix("10.1.0.0/16"), Scope: &scope},
			{Dst: netip.MustParsePrefix("169.254.169.254/32"), Blackhole: true},
			{Dst: netip.MustParsePrefix("fd00:ec2::254/128"), Blackhole: true},
		},
	}
	host := onHost(t, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		for _, g := range gateways {
			if err := h.EnsureAddr(b, g); err != nil {
				return err
			}
		}
		v, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict")
		if err != nil {
			return err
		}
		if err := task.Check(want); err == nil || !strings.Contains(err.Error(), "down") {
			t.Errorf("before it is configured: %v", err)
		}
		if err := errors.Join(task.SetUp(want), h.SetUp(v, b)); err != nil {
			return err
		}
		passesFrames(t, v.Name)
		passesFrames(t, b.Name)
		if err := task.Configure(want); err != nil {
			return err
		}
		found, ok, err := h.Veth(attachment)
		if !ok || !found.Up || found.Bridge != b.Index || found.MAC.String() != v.MAC.String() {
			t.Errorf("found %+v, %v", found, ok)
		}
		ports, portsErr := h.Ports(b)
		if len(ports) != 1 || ports[0].Veth == nil || ports[0].Veth.Attachment != attachment {
			t.Errorf("ports are %+v", ports)
		}
		return errors.Join(err, portsErr)
	})
	if err := task.Check(want); err != nil {
		t.Error(err)
	}
	for _, g := range gateways {
		l, err := host.Listen("tcp", netip.AddrPortFrom(g.Addr(), 80).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		c, err := ns.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	counters, err := AllCounters(ns.Path())
	if err != nil || len(counters) != 1 || counters[0].IfName != "eth0" || counters[0].TxPackets == 0 || counters[0].RxBytes == 0 {
		t.Errorf("counters are %+v, %v", counters, err)
	}
	addrs, err := Addresses(ns.Path())
	if err != nil || len(addrs) != 2 {
		t.Errorf("addresses are %v, %v: expected the two given", addrs, err)
	}
}

// passesFrames checks that the kernel has brought the interface's carrier into effect. A
// dump tells, and unlike other questions does not see to it.
func passesFrames(t *testing.T, name string) {
	t.Helper()
	links, err := consistent(netlink.LinkList)
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
		if err := h.do(setUp(v.Name)); err != nil {
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

func TestCheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	want := Interface{
		Name:   "eth0",
		MAC:    ecs.MAC(netip.MustParseAddr("169.254.172.2")),
		Addrs:  []netip.Prefix{netip.MustParsePrefix("169.254.172.2/22")},
		Routes: []Route{{Dst: netip.MustParsePrefix("169.254.172.1/32")}},
	}
	tests := map[string]struct{ spoil, want string }{
		"the interface": {"link del eth0", "eth0 is missing"},
		"its MAC":       {"link set eth0 address 02:00:00:00:00:01", "eth0 has the MAC 02:00:00:00:00:01: expected 0a:58:a9:fe:ac:02"},
		"its state":     {"link set eth0 down", "eth0 is down"},
		"its address":   {"addr flush dev eth0", "eth0 lacks the address 169.254.172.2/22"},
		"a route":       {"route del 169.254.172.1", "lacks the route 169.254.172.1/32 on the link"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
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
				if _, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict"); err != nil {
					return err
				}
				return errors.Join(task.SetUp(want), task.Configure(want))
			})
			if err := task.Check(want); err != nil {
				t.Fatal(err)
			}
			runIP(t, ns, test.spoil)
			if err := task.Check(want); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestMakeVethLeavesNothingWhenItCannot(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		before, err := links()
		if err != nil {
			return err
		}
		task := openTask(t)
		lo := ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "lo"}
		if _, err := h.MakeVeth(task, lo, b, 1500, time.Hour, "strict"); !errors.Is(err, ErrNameTaken) {
			t.Errorf("a taken name: %v", err)
		}
		gone := Bridge{Name: "br1", Index: 4242}
		if _, err := h.MakeVeth(task, attachment, gone, 1500, time.Hour, "strict"); err == nil {
			t.Error("a bridge that is gone is no error")
		}
		long := ecs.Attachment{Network: "ecs-task", Container: strings.Repeat("c", 250), IfName: "eth0"}
		if _, err := h.MakeVeth(task, long, b, 1500, time.Hour, "strict"); err == nil || !strings.Contains(err.Error(), "258 bytes") {
			t.Errorf("names that are too long: %v", err)
		}
		after, err := links()
		if after != before {
			t.Errorf("left %q where %q was", after, before)
		}
		return err
	})
}

func TestVethIsHeldAndRemoved(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		task := openTask(t)
		v, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict")
		if err != nil {
			return err
		}
		if _, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict"); !errors.Is(err, ecs.ErrHeld) {
			t.Errorf("a second pair: %v", err)
		}
		if _, ok, err := h.Veth(attachment); err != nil || !ok {
			t.Errorf("the first pair: %v, %v", ok, err)
		}
		for _, when := range []string{"is there", "is gone"} {
			var seen string
			err := h.DelVeth(v, func() (err error) {
				seen, err = links()
				return err
			})
			if err != nil || seen != "lo br0" {
				t.Errorf("removed while it %s: %q was there, %v", when, seen, err)
			}
		}
		if _, ok, err := h.Veth(attachment); ok || err != nil {
			t.Errorf("after it was removed: %v, %v", ok, err)
		}
		return nil
	})
}

// A DEL beside the ADD may remove the pair as soon as it is there.
func TestVethThatIsRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	var b Bridge
	host := onHost(t, func(h *Host) (err error) {
		b, err = h.EnsureBridge("br0", 1500)
		return err
	})
	task, made, removed := openTask(t), make(chan struct{}), make(chan error, 1)
	go func() {
		removed <- host.Do(func() error {
			h, err := OpenHost()
			if err != nil {
				return err
			}
			defer h.Close()
			remove := linkStep(unix.RTM_DELLINK, 0, "removing", nl.NewIfInfomsg(unix.AF_UNSPEC), HostName(attachment))
			remove.fine = unix.ENODEV
			for {
				select {
				case <-made:
					return nil
				default:
				}
				if err := h.do(remove); err != nil {
					return err
				}
			}
		})
	}()
	in(t, host, func(h *Host) error {
		for range 100 {
			if v, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict"); err == nil && v.Name == "" {
				t.Error("no error, and no veth")
			}
		}
		return nil
	})
	close(made)
	if err := <-removed; err != nil {
		t.Error(err)
	}
}

func TestVethOfSomebodyElseIsNotOurs(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: HostName(attachment)}, PeerName: "peer"}); err != nil {
			return err
		}
		if _, ok, err := h.Veth(attachment); ok || err != nil {
			t.Errorf("got %v, %v", ok, err)
		}
		all, err := h.Veths()
		if len(all) != 0 {
			t.Errorf("lists %v", all)
		}
		return err
	})
}

func TestOpenTaskNamesTheMissingNamespace(t *testing.T) {
	testnet.Need(t)
	t.Parallel()
	if _, err := OpenTask("/run/netns/none"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/run/netns/none") {
		t.Errorf("got %v", err)
	}
	if _, err := OpenTask(t.TempDir()); err == nil {
		t.Error("a directory passes for a namespace")
	}
}

func TestWatchTellsOfChanges(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var changed <-chan struct{}
	onHost(t, func(h *Host) (err error) {
		if changed, err = Watch(ctx); err != nil {
			return err
		}
		for range 2 { // made, and made again
			b, err := h.EnsureBridge("br0", 1500)
			if err != nil {
				return err
			}
			if _, ok := <-changed; !ok {
				t.Fatal("no change seen of the bridge being made")
			}
			if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: b.Index}}); err != nil {
				return err
			}
			if _, ok := <-changed; !ok {
				t.Fatal("no change seen of the bridge being removed")
			}
		}
		return nil
	})
	cancel()
	for range changed { // ends: the channel is closed with the context
	}
}

// runIP runs iproute2, which is not ours, in a namespace.
func runIP(t *testing.T, ns *testnet.Namespace, words string) {
	t.Helper()
	cmd := exec.Command("ip", strings.Fields(words)...)
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	if err := ns.Run(cmd); err != nil {
		t.Fatalf("ip %s: %v\n%s", words, err, out)
	}
}
