package attack

import (
	"iter"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// bound makes connections that are bound to an interface.
func bound(ifname string) net.Dialer {
	return net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), ifname) }); e != nil {
			return e
		}
		return err
	}}
}

// patience is how long an attack that has to succeed is tried again.
const patience = 20 * time.Second

// run tries every attack in a world, one after the other, in the order of their names.
// Lets says why one succeeds there, or "".
func run(t *testing.T, w *world, lets func(attack) string) {
	for name, a := range all() {
		t.Run(name, func(t *testing.T) {
			if why := lets(a); why != "" {
				w.mustSucceed(t, a)
			} else {
				w.mustFail(t, a)
			}
		})
	}
}

// all are the attacks in the order of their aims and names.
func all() iter.Seq2[string, attack] {
	return func(yield func(string, attack) bool) {
		for _, aim := range slices.Sorted(maps.Keys(attacks)) {
			for name, a := range in(aim) {
				if !yield(name, a) {
					return
				}
			}
		}
	}
}

// in are the attacks with one aim in the order of their names.
func in(aim string) iter.Seq2[string, attack] {
	return func(yield func(string, attack) bool) {
		for _, name := range slices.Sorted(maps.Keys(attacks[aim])) {
			if !yield(name, attacks[aim][name]) {
				return
			}
		}
	}
}

func (w *world) mustSucceed(t *testing.T, a attack) {
	t.Helper()
	w.wait = 2 * time.Second
	for deadline := time.Now().Add(patience); !a.try(t, w); {
		if time.Now().After(deadline) {
			t.Fatal("the attack does not succeed, so that its failure elsewhere shows nothing")
		}
		w.forget(t)
	}
	w.forget(t)
}

func (w *world) mustFail(t *testing.T, a attack) {
	t.Helper()
	w.wait = 200 * time.Millisecond
	for range testnet.Soak(1, 20) {
		if a.try(t, w) {
			t.Fatal("the attack succeeds")
		}
	}
	w.forget(t)
	w.whole(t, endpoint4)
}

// forget makes the host and the tasks unlearn what an attack has taught them.
func (w *world) forget(t testing.TB) {
	t.Helper()
	if !w.bare {
		return
	}
	sh(t, w.host, "ip neigh flush dev ecs-bridge; ip link set ecs-bridge type bridge fdb_flush; ip -6 route flush proto ra")
	for _, k := range []*task{w.victim, w.attacker} {
		sh(t, k.Namespace, "ip neigh flush dev eth0")
	}
}

func TestAttacks(t *testing.T) {
	t.Parallel()
	worlds := map[string]struct {
		kind
		lets  func(attack) string
		storm bool
	}{
		"on a plain bridge": {kind: plain, lets: func(a attack) string {
			if a.plainStops != "" {
				return ""
			}
			return "nothing stops it"
		}},
		"with guard strict":             {kind: strict, lets: func(attack) string { return "" }},
		"with guard source":             {kind: source, lets: func(a attack) string { return a.sourceLets }},
		"after nft flush ruleset":       {kind: flushed, lets: func(a attack) string { return a.flushedLets }},
		"during a storm of ADD and DEL": {kind: strict, lets: func(attack) string { return "" }, storm: true},
	}
	// Most of the time they wait for nothing to happen: all at once, however few processors
	// there are.
	var running sync.WaitGroup
	defer running.Wait()
	for name, world := range worlds {
		running.Go(func() {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, world.kind)
				if world.storm {
					rounds := w.storm(t)
					defer func() { t.Logf("%d attachments came and went meanwhile", rounds()) }()
				}
				run(t, w, world.lets)
				w.whole(t)
			})
		})
	}
}

// storm attaches and detaches other tasks until the end of the test, or until the returned
// function is called, which says how many.
func (w *world) storm(t *testing.T) (end func() int) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var done int
	for _, name := range []string{"one", "two"} {
		ns := testnet.T(t)
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				for _, verb := range []string{"ADD", "DEL"} {
					if _, err := w.cni("ecs-bridge", verb, name, ns.Path(), w.conf(name)); err != nil {
						t.Error(err)
						return
					}
				}
				mu.Lock()
				done++
				mu.Unlock()
			}
		})
	}
	stop := sync.OnceFunc(func() { close(over); wg.Wait() })
	t.Cleanup(stop)
	return func() int { stop(); return done }
}
