package link

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

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
	host := onHost(t, func(h *Host) error { return connect(t, h, task) })
	if err := task.Check(wanted); err != nil {
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
	if err != nil || len(counters) != 1 || counters["eth0"].TxPackets == 0 || counters["eth0"].RxBytes == 0 {
		t.Errorf("counters are %+v, %v", counters, err)
	}
	addrs, err := Addresses(ns.Path())
	if err != nil || len(addrs) != 2 {
		t.Errorf("addresses are %v, %v: expected the two given", addrs, err)
	}
}

// What the task of [TestPairConnectsTaskAndBridge] is to have, and the bridge.
var (
	gateways = []netip.Prefix{netip.MustParsePrefix("169.254.172.1/22"), netip.MustParsePrefix("fd00:ec2::1/64")}
	scope    = 200
	wanted   = Interface{
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
)

// connect gives them to both, and checks what the host then finds.
func connect(t *testing.T, h *Host, task *Task) error {
	t.Helper()
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
	if err := task.Check(wanted); err == nil || !strings.Contains(err.Error(), "down") {
		t.Errorf("before it is configured: %v", err)
	}
	if err := errors.Join(task.SetUp(wanted), h.SetUp(v, b)); err != nil {
		return err
	}
	passesFrames(t, v.Name)
	passesFrames(t, b.Name)
	if err := task.Configure(wanted); err != nil {
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
