package attach

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// A State is how attaching goes.
type State struct {
	// Failures is how often attaching or detaching a container has failed.
	Failures uint64
	// Waiting are the containers that should be attached and are not, those first that have
	// waited longest.
	Waiting []Waiting
}

// A Waiting is a container that should be attached and is not.
type Waiting struct {
	// Container is its ID, Name is Docker's name for it.
	Container, Name string
	// Since is when the first attempt failed.
	Since time.Time
	// Attempts is how many have failed since.
	Attempts int
	// Err is why the last one failed. [ErrHostNetwork]: it is not tried again, because such
	// a container can't be attached.
	Err error
}

// progress is what an Attacher's State is made from. The zero value is ready.
type progress struct {
	mu       sync.Mutex // for what follows
	failures uint64
	waiting  map[string]*Waiting // by container ID
}

// State returns how attaching goes. A resolver without --auto-attach has no attacher: that of
// nil is empty.
func (a *Attacher) State() State {
	if a == nil {
		return State{}
	}
	a.progress.mu.Lock()
	defer a.progress.mu.Unlock()
	s := State{Failures: a.progress.failures}
	for _, w := range a.progress.waiting {
		s.Waiting = append(s.Waiting, *w)
	}
	slices.SortFunc(s.Waiting, func(a, b Waiting) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Container, b.Container))
	})
	return s
}
