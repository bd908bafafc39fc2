package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

const never = "0001-01-01T00:00:00Z"

// sample is what the daemon sends, odd in its form so that a change shows.
func sample(read, preread, more string) string {
	return fmt.Sprintf(`{ "read":%q , "preread":%q,"cpu_stats":{"cpu_usage":{"total_usage":18446744073709551615}}%s}`, read, preread, more)
}

const now, before = "2026-01-01T00:00:01.000000001Z", "2026-01-01T00:00:00.000000001Z"

// statsOf runs an index of a task and waits until it is known.
func statsOf(t testing.TB, containers ...*container.InspectResponse) (*fakedocker.Daemon, *Index) {
	t.Helper()
	f, x := indexOf(t, containers...)
	mustTask(t, x, bindingOf(containers[0].ID))
	return f, x
}

// statsWith is statsOf with times of the test's own.
func statsWith(t testing.TB, change func(*times), containers ...*container.InspectResponse) (*fakedocker.Daemon, *Index) {
	t.Helper()
	f := fakedocker.T(t)
	f.Keep(containers...)
	f.Serve(t)
	x := newIndex(t, f)
	change(&x.times)
	run(t, x)
	mustTask(t, x, bindingOf(containers[0].ID))
	return f, x
}

func TestStatsAreDockersOwnBytes(t *testing.T) {
	t.Parallel()
	pause, app := fakedocker.Container(0, "", arn), fakedocker.Container(1, fakedocker.ID(0), arn)
	ended := fakedocker.Stopped(fakedocker.Container(2, pause.ID, arn), 0)
	f := fakedocker.T(t)
	f.Keep(pause, app, ended)
	f.Serve(t)
	x := newIndex(t, f)
	x.cfg.Counters = func(pid int) (map[string]ecs.Counters, error) {
		if pid != pause.State.Pid {
			t.Errorf("interfaces of process %d, want %d", pid, pause.State.Pid)
		}
		return map[string]ecs.Counters{"eth0": {RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8}}, nil
	}
	run(t, x)
	mustTask(t, x, bindingOf(pause.ID))
	const theirs = `,"networks":{"eth9":{}}`
	f.SetSample(func(id string, n int) (string, bool) {
		more := ""
		if id == pause.ID {
			more = theirs
		}
		if n == 0 {
			return sample(now, never, more), true
		}
		return sample(now, before, more), true
	})
	stats, err := x.Stats(t.Context(), []string{pause.ID, app.ID, ended.ID})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		pause.ID: sample(now, before, theirs),
		app.ID: sample(now, before, `,"networks":{"eth0":{"rx_bytes":1,"rx_packets":2,"rx_errors":3,"rx_dropped":4,`+
			`"tx_bytes":5,"tx_packets":6,"tx_errors":7,"tx_dropped":8}}`),
		ended.ID: "",
	}
	for id, want := range want {
		if got := string(stats[id]); got != want {
			t.Errorf("container %.4s: %s, want %s", id, got, want)
		}
	}
}

func TestAStreamIsSharedAndEnds(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	f, x := statsOf(t, pause)
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() {
			if stats, err := x.Stats(t.Context(), []string{pause.ID}); err != nil || stats[pause.ID] == nil {
				t.Errorf("Stats: %s, %v", stats, err)
			}
		})
	}
	asking.Wait()
	if n := f.Count("stats"); n != 1 || x.State().Streams != 1 {
		t.Errorf("%d streams were opened for 50 questions and %d are open, want 1 and 1", n, x.State().Streams)
	}
	question := time.NewTicker(x.times.idle / 10)
	defer question.Stop()
	for range 20 { // asked for, it stays
		<-question.C
		if _, err := x.Stats(t.Context(), []string{pause.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Count("stats"); n != 1 {
		t.Errorf("%d streams were opened while questions came, want 1", n)
	}
	await(t, "the stream to end", func() error {
		if n, m := x.State().Streams, f.OpenStreams(); n+m > 0 {
			return fmt.Errorf("%d are open here and %d at the daemon", n, m)
		}
		return nil
	})
	if _, err := x.Stats(t.Context(), []string{pause.ID}); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// errNone is an answer without an error and without statistics.
var errNone = errors.New("no statistics, and no error")

// Containers without a sample have no statistics, whatever keeps it back. The others are
// answered, with one time-out for all, and later at once.
func TestContainersWithoutASampleHoldUpNobody(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	tests := map[string]func(w http.ResponseWriter, r *http.Request){
		"no header": hang,
		"no sample": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			hang(w, r)
		},
		"one sample, none to compare with": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, sample(now, never, ""))
			w.(http.Flusher).Flush()
			hang(w, r)
		},
		"an error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"garbage":  func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
	}
	for name, fail := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pause := fakedocker.Container(0, "", arn)
			all := []*container.InspectResponse{pause}
			for n := range 4 {
				all = append(all, fakedocker.Container(n+1, pause.ID, arn))
			}
			f, x := statsWith(t, func(q *times) { q.sample, q.idle = 2*time.Second, time.Minute }, all...)
			var asked []string
			for _, c := range all {
				asked = append(asked, c.ID)
			}
			bad := asked[:4] // the good one is the last to be asked for
			f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
				fails := kind == "stats" && !strings.Contains(r.URL.Path, asked[4])
				if fails {
					fail(w, r)
				}
				return fails
			})
			for _, atMost := range []time.Duration{2 * x.times.sample, x.times.sample / 2} {
				start := time.Now()
				stats, err := x.Stats(t.Context(), asked)
				if took := time.Since(start); took > atMost {
					t.Errorf("it took %v, want %v at most", took, atMost)
				}
				if err != nil || len(stats) != 1 || stats[asked[4]] == nil {
					t.Errorf("Stats: %s, %v, want those of one container", stats, err)
				}
			}
			if _, err := x.Stats(t.Context(), bad[:1]); err != nil && !errors.Is(err, ecs.ErrDockerUnavailable) {
				t.Errorf("one alone: %v", err)
			}
		})
	}
}

// A stream that has gone silent is opened anew while it is asked for: what a daemon or a
// proxy has lost comes on another.
func TestASilentStreamIsOpenedAnew(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before its header", "after a sample"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			pause := fakedocker.Container(0, "", arn)
			f, x := statsWith(t, func(q *times) { q.idle = time.Minute }, pause)
			f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
				if kind != "stats" || f.Count("stats") > 1 {
					return false
				}
				if when == "after a sample" {
					fmt.Fprintln(w, sample(now, before, ""))
					w.(http.Flusher).Flush()
				}
				<-r.Context().Done()
				return true
			})
			ask := func() error {
				stats, err := x.Stats(t.Context(), []string{pause.ID})
				if err == nil && stats[pause.ID] == nil {
					err = errNone
				}
				return err
			}
			await(t, "a silent stream", func() error {
				if err := ask(); !errors.Is(err, errNone) {
					return fmt.Errorf("Stats: %v, want %v", err, errNone)
				}
				return nil
			})
			await(t, "another stream", ask)
		})
	}
}

func TestSamplesThatStopComing(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	f, x := statsOf(t, pause)
	ask := func() error {
		start := time.Now()
		stats, err := x.Stats(t.Context(), []string{pause.ID})
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("a question took %v", took)
		}
		if err == nil && stats[pause.ID] == nil {
			err = errNone
		}
		return err
	}
	going, stall := make(chan struct{}), make(chan struct{})
	f.SetSample(func(string, int) (string, bool) {
		select {
		case <-stall:
			<-going
		default:
		}
		return sample(now, before, ""), true
	})
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	close(stall)
	await(t, "the last sample to be too old", func() error {
		if err := ask(); !errors.Is(err, errNone) {
			return fmt.Errorf("Stats: %v, want %v", err, errNone)
		}
		return nil
	})
	close(going)
	await(t, "the recovery", ask)
}

func TestStreamsThatFail(t *testing.T) {
	t.Parallel()
	tests := map[string]func(id string, n int) (string, bool){
		"garbage":               func(string, int) (string, bool) { return "<html>", true },
		"a number":              func(string, int) (string, bool) { return "1", true },
		"half a sample":         func(_ string, n int) (string, bool) { return `{"read":"` + now + `",`, n == 0 },
		"the end":               func(string, int) (string, bool) { return "", false },
		"a time that cannot be": func(string, int) (string, bool) { return `{"read":"today"}`, true },
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pause := fakedocker.Container(0, "", arn)
			f, x := statsOf(t, pause)
			f.SetSample(bad)
			if _, err := x.Stats(t.Context(), []string{pause.ID}); !errors.Is(err, ecs.ErrDockerUnavailable) {
				t.Errorf("Stats: %v, want %v", err, ecs.ErrDockerUnavailable)
			}
			f.SetSample(func(string, int) (string, bool) { return sample(now, before, ""), true })
			stats, err := x.Stats(t.Context(), []string{pause.ID})
			if err != nil || !json.Valid(stats[pause.ID]) {
				t.Errorf("after the recovery: %s, %v", stats, err)
			}
		})
	}
}

func TestAContainerThatStopsWhileItIsAskedFor(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	f, x := statsOf(t, pause)
	f.SetSample(func(_ string, n int) (string, bool) {
		if n == 0 {
			f.Put(events.ActionDie, fakedocker.Stopped(pause, 0))
		}
		return sample(never, never, ""), true // what Docker sends then
	})
	stats, err := x.Stats(t.Context(), []string{pause.ID})
	if err != nil || stats[pause.ID] != nil {
		t.Errorf("Stats: %s, %v, want nothing", stats, err)
	}
	f.Forget(pause.ID)
	if stats, err = x.Stats(t.Context(), []string{pause.ID}); err != nil || stats[pause.ID] != nil {
		t.Errorf("after its removal: %s, %v, want nothing", stats, err)
	}
}

func TestStatsWithoutADaemon(t *testing.T) {
	t.Parallel()
	pause := fakedocker.Container(0, "", arn)
	f := fakedocker.T(t)
	f.Keep(pause)
	f.Serve(t)
	x := newIndex(t, f)
	stop := run(t, x)
	mustTask(t, x, bindingOf(pause.ID))
	if _, err := x.Stats(t.Context(), []string{pause.ID}); err != nil {
		t.Fatal(err)
	}
	f.Stop()
	await(t, "the loss", func() error {
		if _, err := x.Stats(t.Context(), []string{pause.ID}); !errors.Is(err, ecs.ErrDockerUnavailable) {
			return fmt.Errorf("Stats: %v, want %v", err, ecs.ErrDockerUnavailable)
		}
		return nil
	})
	stop()
	if _, err := x.Stats(t.Context(), []string{pause.ID}); !errors.Is(err, ecs.ErrDockerUnavailable) {
		t.Errorf("after Run: %v, want %v", err, ecs.ErrDockerUnavailable)
	}
	if n := x.State().Streams; n > 0 {
		t.Errorf("%d streams are open after Run", n)
	}
}
