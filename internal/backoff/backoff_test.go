package backoff

import (
	"testing"
	"time"
)

func TestPausesGrowAndBeginAnew(t *testing.T) {
	t.Parallel()
	b := Backoff{Max: time.Second}
	for range 2 {
		for _, due := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			due *= time.Millisecond
			if got := b.Next(); got < due/2 || got >= due*3/2 {
				t.Errorf("a pause of %v, want one around %v", got, due)
			}
		}
		b.Reset()
	}
	if got := new(Backoff).Next(); got < Min/2 || got >= Min*3/2 {
		t.Errorf("the zero value begins with %v", got)
	}
}
