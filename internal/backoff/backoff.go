// Package backoff is the pause before the next try of what has failed: the same everywhere.
package backoff

import (
	"math/rand/v2"
	"time"
)

// Min is the first pause, and Max the longest unless a [Backoff] says otherwise, both
// before jitter.
const (
	Min = 100 * time.Millisecond
	Max = 30 * time.Second
)

// A Backoff gives pauses that double. The zero value begins with [Min]. It is for one
// goroutine at a time.
type Backoff struct {
	// Max is the longest pause, before jitter; 0 stands for the constant.
	Max  time.Duration
	next time.Duration
}

// Next returns the pause before the next try: at random between half and one and a half of
// what is due, so that those who failed together do not try together.
func (b *Backoff) Next() time.Duration {
	most := b.Max
	if most == 0 {
		most = Max
	}
	due := min(max(b.next, Min), most)
	b.next = min(2*due, most)
	return due/2 + rand.N(due)
}

// Reset begins anew, after a success.
func (b *Backoff) Reset() { b.next = 0 }
