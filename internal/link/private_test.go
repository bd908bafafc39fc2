package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

// A crowd is a host with our bridge, on which a task is, another network with two
// neighbours, and a LAN. Who is asked says its name.
type crowd struct {
	host, task, one, two, lan *testnet.Namespace
	ns                        *netns.NS
	bridge                    Bridge
}

// newCrowd makes the other network of this subnet, in which the host is .1 and the first
// neighbour, which serves port 80, is .2.
func newCrowd(t *testing.T, subnet string) *crowd {
	t.Helper()
	c := &crowd{testnet.T(t), testnet.T(t), testnet.T(t), testnet.T(t), testnet.T(t), nil, Bridge{}}
	var err error
	if c.ns, err = netns.Open(c.host.Path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.ns.Close() })
	in(t, c.host, func(h *Host) error {
		if c.bridge, err = h.EnsureBridge("ecs-bridge", 1500); err != nil {
			return err
		}
		return errors.Join(h.EnsureAddr(c.bridge, Endpoint), h.EnsureAddr(c.bridge, netip.MustParsePrefix("169.254.172.1/22")))
	})
	net := netip.MustParsePrefix(subnet)
	at := func(n byte) string {
		b := net.Addr().As4()
		b[3] = n
		return fmt.Sprintf("%s/%d", netip.AddrFrom4(b), net.Bits())
	}
	for name, to := range map[string]*testnet.Namespace{"task": c.task, "one": c.one, "two": c.two, "lan": c.lan} {
		c.host.Sh(t, fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s; ip link set %[1]s up", name, to.Path()))
		to.Sh(t, "ip link set eth0 up")
	}
	c.host.Sh(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; ip link add br-x type bridge; ip link set br-x up; ip addr add "+at(1)+` dev br-x
		ip link set one master br-x; ip link set two master br-x; ip link set task master ecs-bridge; ip addr add 192.0.2.1/24 dev lan`)
	c.task.Sh(t, "ip addr add 169.254.172.2/32 dev eth0; ip route add 169.254.170.2 via 169.254.172.1 dev eth0 onlink")
	c.one.Sh(t, "ip addr add "+at(2)+" dev eth0")
	c.two.Sh(t, "ip addr add "+at(3)+" dev eth0")
	c.lan.Sh(t, "ip addr add 192.0.2.2/24 dev eth0; ip route add 169.254.168.0/21 via 192.0.2.1")
	// The endpoint's socket is the resolver's: it needs no local address, and takes what comes by the bridge.
	serves(t, c.host, net4(Endpoint.Addr()), "the endpoint", "ecs-bridge")
	serves(t, c.one, ":80", "another network", "")
	serves(t, c.host, ":2222", "the host", "")
	return c
}

func net4(a netip.Addr) string { return netip.AddrPortFrom(a, 80).String() }

func serves(t *testing.T, ns *testnet.Namespace, at, says, device string) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
			if device != "" {
				failed = errors.Join(failed, unix.BindToDevice(int(fd), device))
			}
		})
		return errors.Join(err, failed)
	}}
	var l net.Listener
	if err := ns.Do(func() (err error) { l, err = config.Listen(context.Background(), "tcp4", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, says)
			_ = c.Close()
		}
	}()
}

// asks is who answers at that address, or nobody.
func asks(ns *testnet.Namespace, by net.Dialer, at string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
	defer cancel()
	c, err := ns.Transport(by).DialContext(ctx, "tcp", at)
	if err != nil {
		return "nobody"
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	says, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(says)
}

func boundTo(device string) net.Dialer {
	return net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), device) })
		return errors.Join(err, failed)
	}}
}

// Another network of the host's that has our addresses is as it would be without us, for the
// host too, and those on our bridge find the endpoint.
func TestOthersHaveOurAddresses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		subnet string
		routed bool
		strict string // what rp_filter does to a task that shares its gateway's address with another interface
	}{
		"the endpoint's":         {"169.254.170.0/24", false, "the endpoint"},
		"the endpoint's, routed": {"169.254.170.0/24", true, "the endpoint"},
		"the tasks'":             {"169.254.172.0/22", false, "nobody"},
		"the tasks', routed":     {"169.254.172.0/22", true, "nobody"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCrowd(t, test.subnet)
			in(t, c.host, func(h *Host) error {
				changed, err := h.EnsurePrivate(c.bridge, test.routed)
				again, errAgain := h.EnsurePrivate(c.bridge, test.routed)
				if !changed || again {
					t.Errorf("changed %t, then %t; want true, then false", changed, again)
				}
				return errors.Join(err, errAgain)
			})
			other := netip.MustParsePrefix(test.subnet).Addr().Next().Next()
			fromGateway := boundTo("ecs-bridge")
			fromGateway.LocalAddr = &net.TCPAddr{IP: net.IPv4(169, 254, 172, 1)}
			gateway := net.JoinHostPort(netip.MustParsePrefix(test.subnet).Addr().Next().String(), "2222")
			for rp := range 3 {
				c.host.Sh(t, fmt.Sprintf("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo %d >$f; done", rp))
				c.task.Sh(t, "ip neigh flush all")
				task := "the endpoint"
				if rp == 1 {
					task = test.strict
				}
				for _, q := range []struct {
					who, want string
					ns        *testnet.Namespace
					at        string
					by        net.Dialer
				}{
					{"the task", task, c.task, net4(Endpoint.Addr()), net.Dialer{}},
					{"the other network", "another network", c.two, net4(other), net.Dialer{}},
					{"the host", "another network", c.host, net4(other), net.Dialer{}},
					{"the other network, of the host", "the host", c.one, gateway, net.Dialer{}},
					{"the other network, of the host", "the host", c.two, gateway, net.Dialer{}},
					{"the host bound to the bridge", "nobody", c.host, net4(Endpoint.Addr()), boundTo("ecs-bridge")},
					{"the host bound to the bridge, from the gateway's address", "nobody", c.host, net4(Endpoint.Addr()), fromGateway},
					{"the host by loopback", "nobody", c.host, net4(Endpoint.Addr()), boundTo("lo")},
				} {
					if got := asks(q.ns, q.by, q.at); got != q.want {
						t.Errorf("rp_filter %d: %s is answered by %s; want %s", rp, q.who, got, q.want)
					}
				}
			}
		})
	}
}

// The LAN, and the host itself, find none of our addresses; with routed they find the tasks.
func TestNobodyElseFindsOurAddresses(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, "10.9.0.0/24")
	serves(t, c.task, ":80", "the task", "")
	c.task.Sh(t, "ip route add default via 169.254.172.1 dev eth0 onlink")
	for _, step := range []struct {
		private, routed bool
		endpoint        string // for the host
		gateway, task   string // for the LAN
	}{
		{false, false, "the endpoint", "the host", "the task"},
		{true, false, "nobody", "nobody", "nobody"},
		{true, true, "nobody", "the host", "the task"},
		{true, false, "nobody", "nobody", "nobody"},
		{false, false, "the endpoint", "the host", "the task"},
	} {
		in(t, c.host, func(h *Host) (err error) {
			if step.private {
				_, err = h.EnsurePrivate(c.bridge, step.routed)
			} else {
				_, err = h.RemovePrivate(c.bridge.Name)
			}
			return err
		})
		if got := asks(c.host, net.Dialer{}, net4(Endpoint.Addr())); got != step.endpoint {
			t.Errorf("%+v: the host is answered by %s", step, got)
		}
		if got := asks(c.lan, net.Dialer{}, "169.254.172.1:2222"); got != step.gateway {
			t.Errorf("%+v: the LAN is answered at the gateway's address by %s", step, got)
		}
		if got := asks(c.lan, net.Dialer{}, "169.254.172.2:80"); got != step.task {
			t.Errorf("%+v: the LAN is answered at the task's address by %s", step, got)
		}
		if got := asks(c.lan, net.Dialer{}, net4(Endpoint.Addr())); got != "nobody" {
			t.Errorf("%+v: the LAN is answered at the endpoint by %s", step, got)
		}
		if got := asks(c.task, net.Dialer{}, net4(Endpoint.Addr())); got != "the endpoint" {
			t.Errorf("%+v: the task is answered by %s", step, got)
		}
	}
	if left := c.host.Sh(t, "ip rule; ip route show table all"); strings.Contains(left, fmt.Sprint(tablesOf("ecs-bridge").in)) || strings.Contains(left, fmt.Sprint(tablesOf("ecs-bridge").out)) {
		t.Errorf("left: %s", left)
	}
}

// RemovePrivate leaves the routes that the kernel had made, and what goes with the bridge
// is no error.
func TestRemovePrivateLeavesTheKernelsRoutes(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, "10.9.0.0/24")
	show := func() string {
		return c.host.Sh(t, "ip rule; (ip route show table local; ip route show) | sort")
	}
	before := show()
	for _, routed := range []bool{false, true} {
		in(t, c.host, func(h *Host) error {
			_, err := h.EnsurePrivate(c.bridge, routed)
			if show() == before {
				t.Error("nothing was done")
			}
			changed, removed := h.RemovePrivate("ecs-bridge")
			again, twice := h.RemovePrivate("ecs-bridge")
			if !changed || again {
				t.Errorf("changed %t, then %t; want true, then false", changed, again)
			}
			return errors.Join(err, removed, twice)
		})
		if after := show(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
	in(t, c.host, func(h *Host) error {
		_, err := h.EnsurePrivate(c.bridge, false)
		c.host.Sh(t, "ip link del ecs-bridge")
		_, removed := h.RemovePrivate("ecs-bridge")
		return errors.Join(err, removed)
	})
	if rules := c.host.Sh(t, "ip rule"); strings.Contains(rules, "ecs-bridge") {
		t.Errorf("rules left:\n%s", rules)
	}
}

// Whatever the kernel or somebody makes of the routes is reported, and EnsurePrivate mends it.
func TestWatchPrivate(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, "10.9.0.0/24")
	in(t, c.host, func(h *Host) error { _, err := h.EnsurePrivate(c.bridge, false); return err })
	show := func() string { return c.host.Sh(t, "(ip rule; ip -4 route show table all) | sort") }
	whole := show()
	for _, harm := range []string{
		"ip rule del iif ecs-bridge",
		"ip rule flush; ip rule add lookup main pref 32766; ip rule add lookup default pref 32767",
		fmt.Sprintf("ip route flush table %d", tablesOf("ecs-bridge").in),
		fmt.Sprintf("ip route flush table %d", tablesOf("ecs-bridge").out),
		"ip route add local 169.254.170.2 dev ecs-bridge table local src 169.254.170.2 proto kernel",
		"ip addr del 169.254.170.2/32 dev ecs-bridge; ip addr add 169.254.170.2/32 dev ecs-bridge",
		"ip link set ecs-bridge down; ip link set ecs-bridge up",
		"ip rule add iif lo pref 99 lookup " + fmt.Sprint(tablesOf("ecs-bridge").in),
	} {
		ctx, cancel := context.WithCancel(t.Context()) // a watch that heard of nothing yet
		links, err := Watch(ctx, c.ns, nil)
		private, errPrivate := WatchPrivate(ctx, c.ns, "ecs-bridge")
		if err := errors.Join(err, errPrivate); err != nil {
			t.Fatal(err)
		}
		c.host.Sh(t, harm)
		select {
		case <-links:
		case <-private:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: no word of it", harm)
		}
		cancel()
		in(t, c.host, func(h *Host) error {
			changed, err := h.EnsurePrivate(c.bridge, false)
			if !changed {
				t.Errorf("%s: not mended", harm)
			}
			return err
		})
		if now := show(); now != whole {
			t.Errorf("after %s:\n%s\nbefore:\n%s", harm, now, whole)
		}
	}
}
