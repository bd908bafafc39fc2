package endpoint

import (
	"errors"
	"strings"
	"testing"

	"taskmeta/internal/guard"
	"taskmeta/internal/netns"
)

// A resolver without a bridge takes away what one with a bridge has left, if that is not
// there any more.
func TestWhatAnEarlierRunLeftIsWithdrawn(t *testing.T) {
	t.Parallel()
	for _, mode := range []guard.Mode{guard.Strict, guard.Off} {
		h := newHost(t, mode)
		if err := errors.Join(h.EnsureBridge(), h.Ensure()); err != nil {
			t.Fatal(err)
		}
		kept := func() bool {
			found := h.sh(t, "ip rule; nft list tables")
			if found2 := strings.Contains(found, "inet ecs_guard"); mode == guard.Strict && found2 != strings.Contains(found, "iif ecs-bridge") {
				t.Errorf("routes and table are not alike: %s", found)
			}
			return strings.Contains(found, "iif ecs-bridge")
		}
		if err := Withdraw(h.ns, h.db); err != nil || !kept() {
			t.Errorf("%s: what a resolver that listens needs was taken away, %v", mode, err)
		}
		if err := h.socket.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Withdraw(h.ns, h.db); err != nil || kept() {
				t.Errorf("%s: it is still there, %v", mode, err)
			}
		}
	}
}

// So does it with the network namespace in which plugins would attach, unless tasks are there.
func TestAnEarlierRunsNamespaceIsWithdrawn(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	pin := netns.PinPath(h.db)
	ns, err := netns.Pin(pin)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	defer netns.Unpin(pin)
	h.attach(t, "c1", "")
	if err := Withdraw(h.ns, h.db); err == nil || !strings.Contains(err.Error(), "tasks are attached in the network namespace "+pin) {
		t.Errorf("%v; want an error that names the namespace", err)
	}
	if err := netns.Unpin(pin); err != nil {
		t.Fatal(err)
	}
	empty, err := netns.Pin(pin)
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	err = Withdraw(h.ns, h.db)
	if left, e := netns.Pinned(pin); err != nil || e == nil {
		left.Close()
		t.Errorf("an empty namespace stays pinned, %v", err)
	}
}
