package guard_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"taskmeta/internal/guard"
	"taskmeta/internal/rtnl"
)

func TestEnsureRepairsTheTable(t *testing.T) {
	t.Parallel()
	ns, _ := host(t, "169.254.172.1/22")
	h := guard.Host{Bridge: "ecs-bridge", Mode: guard.Strict}
	ensure := func(want bool, after string) {
		t.Helper()
		var changed bool
		on(t, ns, func(c *rtnl.Conn) (err error) {
			_, changed, err = h.Ensure(c)
			return err
		})
		if changed != want {
			t.Errorf("%s: changed is %t; want %t", after, changed, want)
		}
	}
	ensure(true, "nothing there")
	whole := nft(t, ns, "list", "ruleset")
	ensure(false, "whole")
	for _, harm := range []string{
		"nft flush ruleset",
		"nft flush chain inet ecs_guard raw",
		"nft delete chain inet ecs_guard forward",
		"nft add rule inet ecs_guard raw accept",
		"nft insert rule inet ecs_guard rawout accept",
		"nft add chain inet ecs_guard more",
		"nft add chain inet ecs_guard raw { policy drop; }",
	} {
		args := strings.Fields(harm)
		in(t, ns, exec.Command(args[0], args[1:]...).Run)
		ensure(true, harm)
		if got := nft(t, ns, "list", "ruleset"); got != whole {
			t.Errorf("after %s and the repair:\n%s", harm, got)
		}
	}
	in(t, ns, exec.Command("ip", "addr", "add", "10.9.0.1/24", "dev", "ecs-bridge").Run)
	ensure(true, "another subnet")
	if got := nft(t, ns, "list", "ruleset"); !strings.Contains(got, `iifname != "ecs-bridge" iifname != "lo" ip daddr 10.9.0.1`) {
		t.Errorf("the new subnet's address is missing:\n%s", got)
	}
	in(t, ns, exec.Command("ip", "addr", "add", "fd00:9::1/64", "nodad", "dev", "ecs-bridge").Run)
	ensure(true, "another endpoint")
	const dropped = `iifname != "ecs-bridge" iifname != "lo" ip6 daddr fd00:9::1`
	if got := nft(t, ns, "list", "ruleset"); !strings.Contains(got, dropped) {
		t.Errorf("the new endpoint is missing:\n%s", got)
	}
	in(t, ns, exec.Command("ip", "addr", "add", "fd00:9::1/64", "nodad", "dev", "lo").Run)
	ensure(true, "another interface with the address")
	if got := nft(t, ns, "list", "ruleset"); strings.Contains(got, dropped) {
		t.Errorf("what comes for another interface's address is dropped:\n%s", got)
	}
	nft(t, ns, "add table inet other")
	for _, want := range []bool{true, false} {
		on(t, ns, func(c *rtnl.Conn) error {
			changed, err := h.Remove(c)
			if changed != want {
				t.Errorf("Remove: changed is %t; want %t", changed, want)
			}
			return err
		})
	}
	if got := nft(t, ns, "list", "tables"); got != "table inet other\n" {
		t.Errorf("tables left: %s", got)
	}
}

func TestEnsureWithoutABridge(t *testing.T) {
	t.Parallel()
	ns, _ := host(t)
	err := doOn(ns, func(c *rtnl.Conn) error {
		_, _, err := guard.Host{Bridge: "ecs-other", Mode: guard.Strict}.Ensure(c)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "ecs-other") {
		t.Errorf("%v; want an error that names the bridge", err)
	}
}

// Two bridges have a table each, whatever their names, and neither says anything of the
// other, or of what goes between other interfaces.
func TestEachBridgeHasATableOfItsOwn(t *testing.T) {
	t.Parallel()
	ns, _ := host(t, "169.254.172.1/22", "fd00:ec2::172:1/112")
	in(t, ns, exec.Command("ip", "addr", "add", "169.254.172.1/22", "dev", "lo").Run)
	names := map[string]string{"ecs-bridge": "ecs_guard", "ecs_bridge": "ecs_guard_ecs_5fbridge", "b-2": "ecs_guard_b-2", "b~2": "ecs_guard_b_7e2", "b_2": "ecs_guard_b_5f2"}
	for bridge := range names {
		if bridge != "ecs-bridge" {
			in(t, ns, exec.Command("ip", "link", "add", bridge, "type", "bridge").Run)
			in(t, ns, exec.Command("ip", "addr", "add", "169.254.170.2/32", "dev", bridge).Run)
		}
	}
	for _, want := range []bool{true, false} {
		for bridge := range names {
			on(t, ns, func(c *rtnl.Conn) error {
				h := guard.Host{Bridge: bridge, Mode: guard.Strict}
				_, changed, err := h.Ensure(c)
				if changed != want {
					t.Errorf("%s: changed is %t; want %t", bridge, changed, want)
				}
				return errors.Join(err, h.Check(c))
			})
		}
	}
	for bridge, table := range names {
		others := 0
		for line := range strings.Lines(nft(t, ns, "list", "table", "inet", table)) {
			switch line = strings.TrimSpace(line); {
			case !strings.Contains(line, "drop") && !strings.Contains(line, "accept") && !strings.Contains(line, "notrack"):
			case strings.HasPrefix(line, "type filter hook"):
			case strings.HasPrefix(line, `iifname "`+bridge+`"`), strings.HasPrefix(line, `oifname "`+bridge+`"`):
			case strings.Contains(line, "ip6 daddr fd00:ec2::172:1 "): // which no other interface has
				others++
			default:
				t.Errorf("%s has a rule about others: %s", table, line)
			}
		}
		if want := map[bool]int{true: 2}[bridge == "ecs-bridge"]; others != want {
			t.Errorf("%s has %d rules about the endpoint of IPv6; want %d", table, others, want)
		}
	}
	on(t, ns, func(c *rtnl.Conn) error {
		_, err := guard.Host{Bridge: "b-2"}.Remove(c)
		return err
	})
	if left := nft(t, ns, "list", "tables"); strings.Contains(left, "ecs_guard_b-2") || strings.Count(left, "ecs_guard") != len(names)-1 {
		t.Errorf("tables left: %s", left)
	}
}

// The table of an older release for another bridge than the default one has the default
// one's name, and is taken away by that bridge's own.
func TestTheOldTableOfAnotherBridgeGoes(t *testing.T) {
	t.Parallel()
	for about, left := range map[string]bool{"b2": false, "ecs-bridge": true} {
		ns, _ := host(t, "169.254.172.1/22")
		in(t, ns, exec.Command("ip", "link", "add", "b2", "type", "bridge").Run)
		nft(t, ns, fmt.Sprintf(`add table inet ecs_guard; add chain inet ecs_guard raw; add rule inet ecs_guard raw iifname != %q ip daddr 169.254.170.2 counter drop`, about))
		on(t, ns, func(c *rtnl.Conn) error {
			_, _, err := guard.Host{Bridge: "b2", Mode: guard.Source}.Ensure(c)
			return err
		})
		if tables := nft(t, ns, "list", "tables"); strings.Contains(tables, "inet ecs_guard\n") != left || !strings.Contains(tables, "inet ecs_guard_b2\n") {
			t.Errorf("with an old table about %s: %s", about, tables)
		}
	}
}
