package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// What takes the first address of a container for the container's own, as `hostname -I`, the
// JVM and what is built on it do, does not take ours: the interface is the last one, also when
// Docker connects the container to another network later.
func TestOursIsTheLastInterface(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for i, name := range []string{"first", "second"} {
		if out, err := h.docker.CLI("network", "create", "--subnet", fmt.Sprintf("10.40.%d.0/24", i), name); err != nil {
			t.Fatal(err, out)
		}
	}
	h.attachAll(t)
	h.label(t, "web", "--network", "first")
	h.awaitTask(t, "web", "web")
	ns, err := testnet.Open(fmt.Sprintf("/proc/%s/ns/net", h.docker.Pid(t, "web")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	last := func(when string, networks int) {
		t.Helper()
		var ours []int
		addrs := strings.Fields(ns.Sh(t, "hostname -I"))
		for i, text := range addrs {
			if addr, err := netip.ParseAddr(text); err == nil && addr.IsLinkLocalUnicast() && addr.Is4() {
				ours = append(ours, i)
			}
		}
		if len(addrs) != networks+1 || !slices.Equal(ours, []int{networks}) {
			t.Errorf("%s the addresses are %v: want %d of Docker's, then ours", when, addrs, networks)
		}
		if links := strings.Split(ns.Sh(t, "ip -o link"), "\n"); !strings.Contains(links[len(links)-1], "ecs-eth0") {
			t.Errorf("%s the interfaces are\n%s", when, strings.Join(links, "\n"))
		}
	}
	last("attached,", 1)
	if out, err := h.docker.CLI("network", "connect", "second", "web"); err != nil {
		t.Fatal(err, out)
	}
	last("connected to another network,", 2)
	h.awaitTask(t, "web", "web")
}
