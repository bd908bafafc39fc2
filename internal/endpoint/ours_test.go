package endpoint

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// A bridge that others use is refused, and left as it is.
func TestABridgeOfOthersIsRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ name, made, refused string }{
		"Docker's":                           {"docker0", "ip addr add 172.17.0.1/16 dev docker0; ip link add veth1 master docker0 type veth peer name veth2", "bridge docker0 has the port veth1, which is no task's"},
		"Docker's, of no container":          {"docker0", "ip addr add 172.17.0.1/16 dev docker0", "bridge docker0 has the address 172.17.0.1/16, which is no gateway of a task's"},
		"a virtual machine's":                {"br0", "ip tuntap add tap0 mode tap; ip link set tap0 master br0", "has the port tap0"},
		"a network card's":                   {"ecs-bridge", "ip tuntap add tap0 mode tap; ip link set tap0 master ecs-bridge", "has the port tap0"},
		"one with another's IPv6":            {"br0", "ip addr add fd00:7::1/64 dev br0", "has the address fd00:7::1/64"},
		"one that Docker made by our name":   {"ecs-bridge", "ip addr add 172.20.0.1/16 dev ecs-bridge", "has the address 172.20.0.1/16"},
		"an administrator's, empty":          {"br0", "", ""},
		"an administrator's, up":             {"br0", "ip link set br0 up", ""},
		"an administrator's, with ours":      {"br0", "ip addr add 169.254.170.2/32 dev br0; ip addr add 169.254.172.1/22 dev br0", ""},
		"that of AWS's plugin":               {"ecs-bridge", "ip addr add 169.254.172.1/22 dev ecs-bridge; ip link add veth1 master ecs-bridge type veth peer name veth2", ""},
		"that of AWS's plugin, other subnet": {"ecs-bridge", "ip addr add 10.9.0.1/24 dev ecs-bridge", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, guard.Strict)
			h.cfg.Bridge = test.name
			h.cfg.Bindings = func() ([]*ecs.Binding, error) {
				return []*ecs.Binding{{Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.7/24")}}}, nil
			}
			h.sh(t, "ip link add "+test.name+" type bridge; "+test.made)
			before := h.sh(t, "ip -d link; ip addr")
			err := h.EnsureBridge()
			if test.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.refused) {
				t.Errorf("%v; want %q", err, test.refused)
			}
			if after := h.sh(t, "ip -d link; ip addr"); after != before {
				t.Errorf("it was:\n%s\nit is:\n%s", before, after)
			}
		})
	}
}

// What we have given to an administrator's bridge is taken for ours when the resolver starts
// again, with no task left.
func TestOurOwnAddressesAreNoOthers(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	h.sh(t, "ip link add ecs-bridge type bridge")
	for range 2 {
		if err := errors.Join(h.EnsureBridge(), h.Ensure()); err != nil {
			t.Fatal(err)
		}
		links, err := link.Open(h.ns)
		if err != nil {
			t.Fatal(err)
		}
		defer links.Close()
		b, err := links.Bridge("ecs-bridge")
		err = errors.Join(err, links.EnsureAddr(b, netip.MustParsePrefix("10.9.0.1/24")), links.EnsureAddr(b, netip.MustParsePrefix("fd00:9::1/64")))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A look at an administrator's bridge changes nothing, and a further task costs the earlier
// ones none of their neighbours.
func TestAnAdministratorsBridgeIsTakenAsItIs(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	h.sh(t, "ip link add ecs-bridge address 02:00:00:00:00:77 type bridge; ip link set ecs-bridge up")
	if err := h.Serve(h.sockets); err != nil {
		t.Fatal(err)
	}
	h.attach(t, "c1", "")
	h.attach(t, "c2", "")
	for range 3 {
		if err := h.Ensure(); err != nil {
			t.Fatal(err)
		}
	}
	if all := h.sh(t, "ip neigh show nud permanent dev ecs-bridge; ip link show ecs-bridge"); strings.Count(all, "lladdr") != 2 || !strings.Contains(all, "02:00:00:00:00:77") {
		t.Errorf("the bridge is no longer as it was:\n%s", all)
	}
}
