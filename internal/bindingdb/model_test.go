package bindingdb

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"

	"pgregory.net/rapid"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/ecs"
)

// A model is the store, and beside it a map that says what the store should hold.
type model struct {
	path string
	pool ecs.Pool
	s    *Store
	held map[ecs.Attachment]netip.Addr
}

// holder is the attachment that has an address.
func (m *model) holder(addr netip.Addr) (ecs.Attachment, bool) {
	for a, other := range m.held {
		if other == addr {
			return a, true
		}
	}
	return ecs.Attachment{}, false
}

func (m *model) attachment(t *rapid.T) ecs.Attachment {
	a := attachment(rapid.IntRange(0, 19).Draw(t, "container"))
	a.Network = rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "network")
	return a
}

func (m *model) acquire(t *rapid.T) {
	a := m.attachment(t)
	b, err := m.s.Acquire(ecs.Binding{Attachment: a}, Want{Pool: m.pool})
	_, held := m.held[a]
	switch {
	case held:
		if !errors.Is(err, ecs.ErrHeld) {
			t.Fatalf("a second ADD: %v", err)
		}
	case len(m.held) == 13:
		if !errors.Is(err, ecs.ErrPoolFull) {
			t.Fatalf("a full pool: %v", err)
		}
	case err != nil:
		t.Fatal(err)
	default:
		if other, taken := m.holder(b.Addrs[0].Addr()); taken {
			t.Fatalf("%s was given to %s and %s", b.Addrs[0], other, a)
		}
		m.held[a] = b.Addrs[0].Addr()
	}
}

func (m *model) acquireByName(t *rapid.T) {
	a := m.attachment(t)
	addr := m.pool.Subnet.Addr()
	for range rapid.IntRange(2, 14).Draw(t, "host") {
		addr = addr.Next()
	}
	_, err := m.s.Acquire(ecs.Binding{Attachment: a}, Want{m.pool, netip.PrefixFrom(addr, 28)})
	_, held := m.held[a]
	_, taken := m.holder(addr)
	switch {
	case held:
		if !errors.Is(err, ecs.ErrHeld) {
			t.Fatalf("a second ADD: %v", err)
		}
	case taken:
		if !errors.Is(err, ecs.ErrAddrTaken) {
			t.Fatalf("a taken address: %v", err)
		}
	case err != nil:
		t.Fatal(err)
	default:
		m.held[a] = addr
	}
}

func (m *model) release(t *rapid.T) {
	a := m.attachment(t)
	if err := m.s.Release(a, a.Container); err != nil {
		t.Fatal(err)
	}
	delete(m.held, a)
}

func (m *model) collect(t *rapid.T) {
	valid := make(map[ecs.Attachment]bool)
	for a := range m.held {
		valid[a] = rapid.Bool().Draw(t, a.String())
	}
	if _, err := m.s.Collect("n1", valid, bootclock.Now()); err != nil {
		t.Fatal(err)
	}
	for a := range m.held {
		if a.Network == "n1" && !valid[a] {
			delete(m.held, a)
		}
	}
}

func (m *model) reopen(t *rapid.T) {
	if err := m.s.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if m.s, err = Open(context.Background(), m.path, Options{BootID: thisBoot}); err != nil {
		t.Fatal(err)
	}
}

// check runs after each step.
func (m *model) check(t *rapid.T) {
	for a, addr := range m.held {
		if b, err := m.s.Lookup(a); err != nil || b.Addrs[0].Addr() != addr {
			t.Fatalf("%s should have %s: %v, %v", a, addr, b.Addrs, err)
		}
	}
}

// The store against a map: no address has two holders, none is lost, whatever is done.
func TestStoreAgainstAModel(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	r := newReader(t, path)
	rapid.Check(t, func(t *rapid.T) {
		os.Remove(path)
		s, err := Open(context.Background(), path, Options{Create: true, BootID: thisBoot})
		if err != nil {
			t.Fatal(err)
		}
		m := &model{path: path, pool: mustPool(t, "10.0.0.0/28"), s: s, held: make(map[ecs.Attachment]netip.Addr)} // 13 addresses
		defer func() { m.s.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"acquire":         m.acquire,
			"acquire by name": m.acquireByName,
			"release":         m.release,
			"collect":         m.collect,
			"reopen":          m.reopen,
			"":                m.check,
		})
		if err := m.s.Close(); err != nil {
			t.Fatal(err)
		}
		snapshot, err := r.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if all := snapshot.All(); len(all) != len(m.held) {
			t.Fatalf("the file has %d bindings, the model %d", len(all), len(m.held))
		}
	})
}
