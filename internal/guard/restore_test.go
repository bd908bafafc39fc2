package guard_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/guard"
	"taskmeta/internal/rtnl"
)

// restore calls Restore for one port and returns what it says it did.
func restore(t *testing.T, ns *testnet.Namespace, p guard.Port) (restored []string) {
	t.Helper()
	p.LinkIndex = index(t, ns, p.Link)
	on(t, ns, func(c *rtnl.Conn) (err error) {
		restored, err = guard.Restore(c, []guard.Port{p})
		return err
	})
	return restored
}

func TestRestoreGivesAChainBack(t *testing.T) {
	t.Parallel()
	ns, p := guarded(t)
	if got := restore(t, ns, p); len(got) > 0 {
		t.Errorf("restored %v where nothing was missing", got)
	}
	// A chain without rules lets nothing out: that is for CHECK to tell.
	nft(t, ns, "flush", "chain", "netdev", "ecs_guard", "in-veth1")
	if got := restore(t, ns, p); len(got) > 0 {
		t.Errorf("restored %v where the chain was there", got)
	}
	nft(t, ns, "flush", "ruleset")
	if got := restore(t, ns, p); !slices.Equal(got, []string{"veth1"}) {
		t.Errorf("restored %v; want veth1", got)
	}
	on(t, ns, p.Check)
}

func TestRestoreLeavesAPlainPortAlone(t *testing.T) {
	t.Parallel()
	ns, _ := host(t)
	if got := restore(t, ns, port(guard.Strict, "169.254.172.2/22")); len(got) > 0 {
		t.Errorf("restored %v, which never had a guard", got)
	}
	if rules := nft(t, ns, "list", "ruleset"); rules != "" {
		t.Errorf("made: %s", rules)
	}
}

func TestRestoreOfAPortThatIsGone(t *testing.T) {
	t.Parallel()
	ns, p := guarded(t)
	on(t, ns, func(c *rtnl.Conn) error {
		l, err := netlink.LinkByName(p.Link)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkDel(l), guard.Remove(c, p.Bridge, p.Link, true))
	})
	on(t, ns, func(c *rtnl.Conn) error {
		restored, err := guard.Restore(c, []guard.Port{p})
		if len(restored) > 0 {
			t.Errorf("restored %v", restored)
		}
		return err
	})
	if left := entries(t, ns); strings.Contains(left, "in-veth1") {
		t.Errorf("left behind: %s", left)
	}
}

func TestWatchTellsOfAFlush(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]string{
		"the ruleset": "flush ruleset",
		"a table":     "delete table netdev ecs_guard",
		"a chain":     "delete chain netdev ecs_guard in-veth1",
		"rules":       "flush chain netdev ecs_guard in-veth1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, _ := guarded(t)
			nft(t, ns, "add", "table", "inet", "another")
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			var changed <-chan struct{}
			on(t, ns, func(c *rtnl.Conn) (err error) {
				changed, err = guard.Watch(ctx, c.NS)
				return err
			})
			nft(t, ns, strings.Fields(harm)...)
			if _, ok := <-changed; !ok {
				t.Error("no word of it")
			}
			cancel()
			for range changed { // it is closed then
			}
		})
	}
}
