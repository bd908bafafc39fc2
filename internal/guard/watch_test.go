package guard_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"taskmeta/internal/guard"
	"taskmeta/internal/rtnl"
)

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
