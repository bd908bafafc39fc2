// Package weakmap keeps a value beside each object of a kind, as long as that object lives.
package weakmap

import (
	"runtime"
	"sync"
	"weak"
)

// A Map has a value for each key, which is a pointer. It does not keep keys alive: once
// nobody else refers to a key, the garbage collector removes the entry. So nobody has to say
// that a key has ended. A value must not refer to its own key, or neither is ever collected.
//
// It may be used by many goroutines at once.
type Map[K, V any] struct {
	create func() *V

	mu      sync.Mutex
	entries map[weak.Pointer[K]]*V
}

// New makes a map whose values create makes.
func New[K, V any](create func() *V) *Map[K, V] {
	return &Map[K, V]{create: create, entries: make(map[weak.Pointer[K]]*V)}
}

// Get returns the value of a key, the same one each time. The first call for a key makes it.
func (m *Map[K, V]) Get(key *K) *V {
	k := weak.Make(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.entries[k]
	if !ok {
		v = m.create()
		m.entries[k] = v
		runtime.AddCleanup(key, m.remove, k)
	}
	return v
}

// Len is the number of entries. A key that has ended counts until its clean-up has run.
func (m *Map[K, V]) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.entries)
}

func (m *Map[K, V]) remove(key weak.Pointer[K]) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}
