package link

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

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
				h, err := current(t)
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

// A bridge whose MAC was never set takes that of a port that has a lower one: not once it has
// a port of ours.
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
		if _, err := h.MakeVeth(openTask(t), attachment, b, 1500, time.Hour, "strict"); err != nil {
			return err
		}
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

// What looks at a bridge of another maker, and a further port of ours on it, leave its
// neighbours: the kernel forgets them when a MAC is set, be it the same.
func TestBridgeOfAnotherMakerKeepsItsNeighbours(t *testing.T) {
	t.Parallel()
	for name, mac := range map[string]string{"a MAC of its own": "address 02:00:00:00:00:77", "a MAC by chance": ""} {
		host := testnet.T(t)
		host.Sh(t, "ip link add br0 "+mac+" type bridge; ip link set br0 up")
		in(t, host, func(h *Host) error {
			for n, container := range []string{"c1", "c2", "c3"} {
				a := attachment
				a.Container = container
				b, err := h.EnsureBridge("br0", 1500)
				if err != nil {
					return err
				}
				if _, err := h.MakeVeth(openTask(t), a, b, 1500, time.Hour, "strict"); err != nil {
					return err
				}
				if n == 0 {
					runIP(t, host, "neigh add 169.254.172.2 lladdr 0a:58:a9:fe:ac:02 nud permanent dev br0")
				}
				if neighbours := host.Sh(t, "ip neigh show dev br0"); !strings.Contains(neighbours, "PERMANENT") {
					t.Errorf("%s: port %d has cost the bridge its neighbours", name, n+1)
				}
			}
			return nil
		})
	}
}

// A bridge that an administrator made, and set up before it had a port, passes frames in a
// state that the kernel calls unknown.
func TestAPortOfAnotherMakersBridgeIsUpAtOnce(t *testing.T) {
	t.Parallel()
	host, task := testnet.T(t), openTask(t)
	host.Sh(t, "ip link add br0 type bridge; ip link set br0 up")
	in(t, host, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		v, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict")
		if err != nil {
			return err
		}
		err = task.SetUp(Interface{Name: attachment.IfName, MAC: ecs.MAC(netip.MustParseAddr("169.254.172.2"))})
		if state := host.Sh(t, "ip link show br0"); !strings.Contains(state, "state UNKNOWN") {
			t.Errorf("the bridge is in another state: %s", state)
		}
		began := time.Now()
		err = errors.Join(err, h.SetUp(v, b))
		if took := time.Since(began); took > carrierTime/2 {
			t.Errorf("it takes %v", took)
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
