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
		defer func() { s.Close() }()
		pool := mustPool(t, "10.0.0.0/28") // 13 addresses
		model := make(map[ecs.Attachment]netip.Addr)
		anyAttachment := rapid.Custom(func(t *rapid.T) ecs.Attachment {
			a := attachment(rapid.IntRange(0, 19).Draw(t, "container"))
			a.Network = rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "network")
			return a
		})
		holder := func(addr netip.Addr) (ecs.Attachment, bool) {
			for a, other := range model {
				if other == addr {
					return a, true
				}
			}
			return ecs.Attachment{}, false
		}
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				a := anyAttachment.Draw(t, "attachment")
				b, err := s.Acquire(ecs.Binding{Attachment: a}, Want{Pool: pool})
				_, held := model[a]
				switch {
				case held:
					if !errors.Is(err, ecs.ErrHeld) {
						t.Fatalf("a second ADD: %v", err)
					}
				case len(model) == 13:
					if !errors.Is(err, ecs.ErrPoolFull) {
						t.Fatalf("a full pool: %v", err)
					}
				case err != nil:
					t.Fatal(err)
				default:
					if other, taken := holder(b.Addrs[0].Addr()); taken {
						t.Fatalf("%s was given to %s and %s", b.Addrs[0], other, a)
					}
					model[a] = b.Addrs[0].Addr()
				}
			},
			"acquire by name": func(t *rapid.T) {
				a := anyAttachment.Draw(t, "attachment")
				addr := pool.Subnet.Addr()
				for range rapid.IntRange(2, 14).Draw(t, "host") {
					addr = addr.Next()
				}
				_, err := s.Acquire(ecs.Binding{Attachment: a}, Want{pool, netip.PrefixFrom(addr, 28)})
				_, held := model[a]
				_, taken := holder(addr)
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
					model[a] = addr
				}
			},
			"release": func(t *rapid.T) {
				a := anyAttachment.Draw(t, "attachment")
				if err := s.Release(a, a.Container); err != nil {
					t.Fatal(err)
				}
				delete(model, a)
			},
			"collect": func(t *rapid.T) {
				valid := make(map[ecs.Attachment]bool)
				for a := range model {
					valid[a] = rapid.Bool().Draw(t, a.String())
				}
				if _, err := s.Collect("n1", valid, bootclock.Now()); err != nil {
					t.Fatal(err)
				}
				for a := range model {
					if a.Network == "n1" && !valid[a] {
						delete(model, a)
					}
				}
			},
			"reopen": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s, err = Open(context.Background(), path, Options{BootID: thisBoot}); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for a, addr := range model {
					if b, err := s.Lookup(a); err != nil || b.Addrs[0].Addr() != addr {
						t.Fatalf("%s should have %s: %v, %v", a, addr, b.Addrs, err)
					}
				}
			},
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		snapshot, err := r.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if all := snapshot.All(); len(all) != len(model) {
			t.Fatalf("the file has %d bindings, the model %d", len(all), len(model))
		}
	})
}
