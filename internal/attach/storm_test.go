package attach

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/dev/testnet/fakedocker"
)

// Containers restart, are attached, detached and collected by hand, all at once, while
// plugins, commands and the resolver are killed and files removed. In the end each that runs
// is attached, with an address of its own, and of the others nothing is left.
func TestAStormOfKills(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.before(t, `echo $$ >>`+w.dir+`/pids`)
	w.serve(t)
	const boxes, actors = 6, 3
	all, ids := make([]*box, boxes), make([]string, boxes)
	for n := range all {
		all[n] = w.start(t, n)
		ids[n] = all[n].ID
	}
	w.await(t, all...)
	rounds := testnet.Soak(4, 60)
	for round := range rounds {
		var group sync.WaitGroup
		for range actors {
			group.Go(func() { w.act(t, ids) })
		}
		group.Go(func() {
			for range 15 {
				w.killSome()
			}
		})
		for _, b := range all[:boxes/2] {
			reap(b.process)
			w.docker.Put(events.ActionDie, fakedocker.Stopped(b.InspectResponse, 137))
			w.boot(t, b)
			w.publish(b)
		}
		switch round % 4 {
		case 1:
			if err := w.resolver.Kill(); err != nil {
				t.Error(err)
			}
			w.serve(t)
		case 2:
			if err := os.RemoveAll(w.db()); err != nil {
				t.Error(err)
			}
		case 3:
			testnet.Await(t, "the folder to be empty", func() error { // others write into it
				return os.RemoveAll(filepath.Join(filepath.Dir(w.db()), "cni"))
			})
		}
		group.Wait()
	}
	gone, stay := all[:2], all[2:]
	if err := w.resolver.Stop(); err != nil {
		t.Error(err)
	}
	for _, b := range gone {
		reap(b.process)
		w.docker.Forget(b.ID)
	}
	w.docker.LoseEvents()
	w.serve(t)
	w.await(t, stay...)
	w.distinct(t)
	for _, b := range gone {
		testnet.Await(t, "nothing to be left of "+b.Name, func() error { return w.free(b) })
	}
	if log := w.resolver.Log(); strings.Contains(log, "panic") {
		t.Error(log)
	}
}

// act does something by hand, which may fail since it may be killed.
func (w *world) act(t *testing.T, ids []string) {
	for range 3 {
		id := ids[rand.N(len(ids))]
		words := [][]string{{"attach", id}, {"detach", id}, {"bindings", "gc"}}[rand.N(3)]
		if out, err := w.run(words...); err != nil && strings.Contains(out, "panic") {
			t.Errorf("%v: %v: %s", words, err, out)
		}
	}
}

// killSome kills a plugin that runs at this moment, if one does.
func (w *world) killSome() {
	path := filepath.Join(w.dir, "pids")
	text, err := os.ReadFile(path)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && (bytes.Contains(cmdline, []byte(w.dir)) || bytes.Contains(cmdline, []byte(bin))) && rand.N(3) == 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			return
		}
	}
}

// distinct checks that no address has two holders.
func (w *world) distinct(t *testing.T) {
	t.Helper()
	addrs := make(map[string]string)
	for id, addr := range w.addrs() {
		if addrs[addr] != "" {
			t.Errorf("%s and %s have %s", id, addrs[addr], addr)
		}
		addrs[addr] = id
	}
}
