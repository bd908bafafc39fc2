package admin

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequestsOfTheLastMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := NewRequests()
		observe := func(status, times int) {
			for range times {
				r.Observe("metadata", status, time.Millisecond)
			}
		}
		observe(200, 3)
		if got := r.traffic().Minute; got != (Count{}) {
			t.Errorf("the second that goes on counts: %+v", got)
		}
		time.Sleep(time.Second)
		observe(404, 2)
		observe(429, 1)
		time.Sleep(time.Second)
		observe(503, 4)
		time.Sleep(time.Second)

		got := r.traffic()
		want := Traffic{
			Total:   Count{Answered: 3, Refused: 3, Failed: 4},
			ByCode:  map[string]uint64{"200": 3, "404": 2, "429": 1, "503": 4},
			Minute:  Count{Answered: 3, Refused: 3, Failed: 4},
			Seconds: make([]Count, 60),
		}
		want.Seconds[57].Answered, want.Seconds[58].Refused, want.Seconds[59].Failed = 3, 3, 4
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after three seconds (-want +got):\n%s", diff)
		}

		time.Sleep(57 * time.Second) // the first second is the oldest now
		observe(200, 9)
		if got := r.traffic().Seconds[0]; got.Answered != 3 {
			t.Errorf("the oldest of 60 seconds is %+v, want the 3 answers of the first", got)
		}
		time.Sleep(time.Second)
		want.Minute = Count{Answered: 9, Refused: 3, Failed: 4}
		if got := r.traffic().Minute; got != want.Minute {
			t.Errorf("after a minute %+v, want %+v", got, want.Minute)
		}
		time.Sleep(time.Hour)
		got = r.traffic()
		if got.Minute != (Count{}) || got.Total.All() != 19 {
			t.Errorf("after an hour %+v of %+v, want none of 19", got.Minute, got.Total)
		}
	})
}

func TestObserveAllocatesNothing(t *testing.T) {
	r := NewRequests()
	r.Observe("metadata", 200, time.Millisecond)
	if n := testing.AllocsPerRun(100, func() { r.Observe("metadata", 200, time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	r := NewRequests()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Observe("metadata", 200, 30*time.Microsecond)
		}
	})
}
