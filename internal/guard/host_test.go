package guard_test

import (
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
	if got := nft(t, ns, "list", "ruleset"); !strings.Contains(got, "ip saddr 10.9.0.0/24") {
		t.Errorf("the new subnet is missing:\n%s", got)
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
