package guard_test

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/guard"
	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// The guard is that of the namespace of the socket. The caller's own, which has a bridge and
// a port of the same names, stays as it was.
func TestGuardActsInTheNamedNamespace(t *testing.T) {
	t.Parallel()
	caller, _ := host(t, "169.254.172.1/22")
	named, _ := host(t, "169.254.172.1/22")
	ns, err := netns.Open(named.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c, err := rtnl.Open(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, h := port(guard.Strict, "169.254.172.2/22"), guard.Host{Bridge: "ecs-bridge", Mode: guard.Strict}
	p.LinkIndex, p.BridgeIndex = index(t, named, p.Link), index(t, named, p.Bridge)
	before := traces(t, caller)
	in(t, caller, func() error {
		changed, err := guard.Watch(ctx, ns)
		if err != nil {
			return err
		}
		_, _, err = h.Ensure(c)
		if err := errors.Join(err, h.Check(c), p.Install(c), p.Attach(c), p.Check(c), guard.Sweep(c, p.Bridge), p.Check(c)); err != nil {
			return err
		}
		if _, ok := <-changed; !ok {
			t.Error("no word of the guard being made")
		}
		return nil
	})
	for _, trace := range []string{"table inet ecs_guard", "chain in-veth1", "169.254.172.2 lladdr 0a:58:a9:fe:ac:02 PERMANENT", "0a:58:a9:fe:ac:02 dev veth1", "isolated on"} {
		if after := traces(t, named); !strings.Contains(after, trace) {
			t.Errorf("the named namespace has no %q: %s", trace, after)
		}
	}
	in(t, caller, func() error {
		if _, err := h.Remove(c); err != nil {
			return err
		}
		nft(t, named, "flush", "ruleset")
		err := p.Install(c)
		addrs, addrsErr := guard.Addrs(c, p.Link)
		if len(addrs) != 1 {
			t.Errorf("the port's addresses are %v", addrs)
		}
		return errors.Join(err, addrsErr, guard.Remove(c, p.Bridge, p.Link, true))
	})
	if left := traces(t, named); strings.Contains(left, "in-veth1") || strings.Contains(left, "PERMANENT") {
		t.Errorf("left in the named namespace: %s", left)
	}
	if after := traces(t, caller); after != before {
		t.Errorf("the caller's namespace has %s; it had %s", after, before)
	}
}

// traces are all that a guard leaves in a namespace.
func traces(t *testing.T, ns *testnet.Namespace) string {
	t.Helper()
	var out []byte
	in(t, ns, func() (err error) {
		out, err = exec.Command("sh", "-ec", "nft list ruleset; ip neigh show nud permanent dev ecs-bridge; bridge fdb show br ecs-bridge; bridge -d link show dev veth1").CombinedOutput()
		return err
	})
	return string(out)
}
