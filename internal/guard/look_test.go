package guard_test

import (
	"errors"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/guard"
	"taskmeta/internal/rtnl"
)

// looks looks at a port as often as it is called, with one memory of its rules.
func looks(t *testing.T, ns *testnet.Namespace, p guard.Port) func() error {
	t.Helper()
	var rules guard.Rules
	return func() (found error) {
		on(t, ns, func(c *rtnl.Conn) error {
			l, err := c.Link(p.Link)
			if err != nil {
				return err
			}
			look, err := rules.NewLook(c, p.BridgeIndex)
			if err != nil {
				return err
			}
			found = errors.Join(look.CheckEntries(l, &p), look.CheckRules(c, &p))
			return nil
		})
		return found
	}
}

// Whatever of a port's guard somebody changes, the next look finds it, and finds nothing
// once it is put right.
func TestALookFindsWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ harm, found string }{
		"the ruleset":            {"nft flush ruleset", "chain in-veth1 of table netdev ecs_guard is missing"},
		"a table":                {"nft delete table netdev ecs_guard", "is missing"},
		"a chain":                {"nft delete chain netdev ecs_guard in-veth1", "is missing"},
		"rules":                  {"nft flush chain netdev ecs_guard in-veth1", "is missing"},
		"a rule too many":        {"nft insert rule netdev ecs_guard in-veth1 accept", "was changed"},
		"a flag":                 {"bridge link set dev veth1 learning on", "learning is 1"},
		"another flag":           {"bridge link set dev veth1 isolated off", "isolated is 0"},
		"a port":                 {"ip link set veth1 nomaster", "it is not a port of a bridge"},
		"the forwarding entry":   {"bridge fdb del 0a:58:a9:fe:ac:02 dev veth1 master", "no sticky entry"},
		"an entry that may move": {"bridge fdb replace 0a:58:a9:fe:ac:02 dev veth1 master static", "no sticky entry"},
		"a neighbour":            {"ip neigh del 169.254.172.2 dev ecs-bridge", "no permanent neighbour 169.254.172.2"},
		"neighbours":             {"ip neigh flush dev ecs-bridge nud permanent", "no permanent neighbour"},
		"a neighbour's MAC":      {"ip neigh replace 169.254.172.2 lladdr 02:00:00:00:00:01 dev ecs-bridge nud permanent", "no permanent neighbour"},
		"one that ages":          {"ip neigh replace 169.254.172.2 lladdr 0a:58:a9:fe:ac:02 dev ecs-bridge nud reachable", "no permanent neighbour"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, p := guarded(t)
			look := looks(t, ns, p)
			for range 2 {
				if err := look(); err != nil {
					t.Fatal(err)
				}
			}
			ns.Sh(t, test.harm)
			for range 2 {
				if err := look(); err == nil || !strings.Contains(err.Error(), test.found) {
					t.Errorf("found %v, want %q", err, test.found)
				}
			}
			ns.Sh(t, "ip link set veth1 master ecs-bridge")
			on(t, ns, func(c *rtnl.Conn) error { return errors.Join(p.Install(c), p.Attach(c)) })
			if err := look(); err != nil {
				t.Errorf("of one that was mended: %v", err)
			}
		})
	}
}

// Rules that were right for one port are not for another of its name.
func TestALookAtAnotherPort(t *testing.T) {
	t.Parallel()
	ns, p := guarded(t)
	var rules guard.Rules
	on(t, ns, func(c *rtnl.Conn) error {
		look, err := rules.NewLook(c, p.BridgeIndex)
		if err != nil {
			return err
		}
		if err := look.CheckRules(c, &p); err != nil {
			t.Error(err)
		}
		other := p
		other.Mode = guard.Source
		if err := look.CheckRules(c, &other); !errors.Is(err, guard.ErrOpen) {
			t.Errorf("of another mode: %v", err)
		}
		off := p
		off.Mode, off.Link = guard.Off, "none"
		return errors.Join(look.CheckRules(c, &off), look.CheckEntries(rtnl.Link{}, &off))
	})
}

// A namespace without any rules has no chain.
func TestALookWhereNothingIs(t *testing.T) {
	t.Parallel()
	ns, _ := host(t)
	p := port(guard.Strict, "169.254.172.2/22")
	p.LinkIndex, p.BridgeIndex = index(t, ns, p.Link), index(t, ns, p.Bridge)
	if err := looks(t, ns, p)(); err == nil || !strings.Contains(err.Error(), "chain in-veth1") {
		t.Errorf("found %v", err)
	}
}
