package attach

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// Containers were restarted while no resolver ran, and Docker has forgotten the events. The
// next resolver attaches them, and they stay attached.
func TestWhatRestartedMeanwhileStaysAttached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(t)
	var all []*box
	for n := range testnet.Soak(12, 140) {
		all = append(all, w.start(t, n))
	}
	w.await(t, all...)
	for round := range testnet.Soak(2, 10) {
		if err := w.resolver.Kill(); err != nil {
			t.Fatal(err)
		}
		for _, b := range all {
			w.restart(t, b)
		}
		w.docker.LoseEvents()
		w.serve(t)
		w.await(t, all...)
		if round == 0 {
			for _, b := range all { // and a daemon that comes back
				w.restart(t, b)
			}
			if err := w.docker.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := w.docker.Start(); err != nil {
				t.Fatal(err)
			}
			testnet.Await(t, "the daemon to be back", func() error {
				if n := strings.Count(w.resolver.Log(), "is connected"); n < 3 {
					return fmt.Errorf("connected %d times", n)
				}
				return nil
			})
			w.await(t, all...)
		}
	}
	if n := len(w.bound()); n != len(all) {
		t.Errorf("%d bindings for %d containers", n, len(all))
	}
}

// Whatever is removed of the folder of the bindings file, tasks stay attached, keep their
// addresses, and no other task is given one of them.
func TestTheFolderIsRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(t)
	var all []*box
	for n := range 3 {
		all = append(all, w.start(t, n))
	}
	w.await(t, all...)
	kept := w.addrs()
	dir := filepath.Dir(w.db())
	// The endpoint's network namespace is mounted in there, which rm leaves alone.
	remove := func(path string) { _ = exec.Command("rm", "-rf", path).Run() }
	for round, what := range []string{"", "bindings.db", "bindings.db.lock", "attach.lock", "ports.lock", "cni"} {
		remove(filepath.Join(dir, what))
		w.await(t, all...)
		late := w.start(t, 10+round)
		w.await(t, append(all, late)...)
		got := w.addrs()
		for id, addr := range kept {
			if got[id] != addr {
				t.Errorf("without %q: %s had %s and has %s", what, id, addr, got[id])
			}
		}
		addrs := slices.Sorted(maps.Values(got))
		if n := len(slices.Compact(addrs)); n != len(got) {
			t.Errorf("without %q: %d containers have %d addresses", what, len(got), n)
		}
		reap(late.process)
		w.docker.Remove(late.ID)
		testnet.Await(t, "the late one to be detached", func() error {
			if w.bound()[late.ID] != nil {
				return fmt.Errorf("bound to %v", w.bound()[late.ID])
			}
			return nil
		})
	}
	w.resolver.AwaitLog(t, "level=WARN", "bindings were lost")
	if err := w.resolver.Stop(); err != nil {
		t.Error(err)
	}

	// By hand, and at the start.
	remove(dir)
	w.mustRun(t, "attached already", "attach", all[0].ID)
	w.await(t, all...)
	remove(dir)
	w.mustRun(t, "nothing to free", "bindings", "gc")
	w.await(t, all...)
	remove(dir)
	w.serve(t)
	w.await(t, all...)
	if got := w.addrs(); !maps.Equal(got, kept) {
		t.Errorf("the addresses were %v and are %v", kept, got)
	}
}
