package weakmap

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

type key struct{ name string }

func TestAKeyHasOneValue(t *testing.T) {
	t.Parallel()
	made := 0
	m := New[key](func() *int { made++; return &made })
	one, other := &key{"a"}, &key{"a"} // equal, but two objects
	values := make(chan *int, 8)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { values <- m.Get(one) })
	}
	group.Wait()
	close(values)
	for v := range values {
		if v != m.Get(one) {
			t.Error("a key has two values")
		}
	}
	m.Get(other)
	if made != 2 || m.Len() != 2 {
		t.Errorf("%d values made, %d kept; want 2", made, m.Len())
	}
	runtime.KeepAlive(one)
	runtime.KeepAlive(other)
}

func TestAnEntryGoesWithItsKey(t *testing.T) {
	t.Parallel()
	m := New[key](func() *[]byte { return new(make([]byte, 100)) })
	kept := &key{"kept"}
	value := m.Get(kept)
	for range 100 {
		m.Get(&key{"dropped"})
	}
	for deadline := time.Now().Add(10 * time.Second); m.Len() > 1; runtime.Gosched() {
		runtime.GC() // clean-ups run after a collection, on a goroutine of the runtime's
		if time.Now().After(deadline) {
			t.Fatalf("%d entries are left, want 1", m.Len())
		}
	}
	if m.Get(kept) != value {
		t.Error("a key that lives has lost its value")
	}
}
