package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"taskmeta/internal/backoff"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/docker"
)

// A container that cannot be attached waits, and State says why; the pauses grow, and begin
// anew with its next process. One that is detached does not wait.
func TestState(t *testing.T) {
	t.Parallel()
	a := &Attacher{}
	var none *Attacher
	if s := none.State(); s.Failures != 0 || len(s.Waiting) != 0 {
		t.Errorf("that of no attacher is %+v", s)
	}
	p := &a.progress
	web := docker.Container{ID: "c1", Name: "web", Pid: 7}
	var last time.Duration
	for n := range 12 {
		pause, news := p.failed(web, fmt.Errorf("process %d holds the lock", n))
		if news != (n == 0) {
			t.Errorf("failure %d: news is %t", n, news)
		}
		last = pause
	}
	if last < backoff.Max/2 || last > backoff.Max*3/2 {
		t.Errorf("the last pause is %v", last)
	}
	if _, news := p.failed(web, errors.New("no address is free")); !news {
		t.Error("another reason is no news")
	}
	web.Pid = 8
	if pause, _ := p.failed(web, errors.New("no address is free")); pause > 2*backoff.Min {
		t.Errorf("after a start the pause is %v", pause)
	}
	p.failed(docker.Container{ID: "c2"}, errors.New("it can't be detached"))
	if !p.hopeless(docker.Container{ID: "c3", Name: "hosted", Pid: 9}, ErrHostNetwork) || p.hopeless(docker.Container{ID: "c3", Name: "hosted", Pid: 9}, ErrHostNetwork) {
		t.Error("a container with the host's network is to be told of once")
	}
	s := a.State()
	if s.Failures != 15 || len(s.Waiting) != 2 {
		t.Fatalf("the state is %+v", s)
	}
	if w := s.Waiting[0]; w.Container != "c1" || w.Name != "web" || w.Attempts != 14 || w.Err.Error() != "no address is free" || time.Since(w.Since) > time.Minute {
		t.Errorf("the first that waits is %+v", w)
	}
	if w := s.Waiting[1]; w.Container != "c3" || !errors.Is(w.Err, ErrHostNetwork) || w.Attempts != 0 {
		t.Errorf("the second that waits is %+v", w)
	}
	if n := p.succeeded("c1"); n != 14 {
		t.Errorf("%d attempts had failed", n)
	}
	p.succeeded("c3")
	if s := a.State(); len(s.Waiting) != 0 {
		t.Errorf("%+v wait", s.Waiting)
	}
}

// A container that cannot be attached is logged once for each reason. The pauses between
// attempts grow, and a start of the container ends the pause.
func TestPausesGrow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	broken := filepath.Join(w.dir, "broken")
	failing := func(why string) {
		t.Helper()
		if err := os.WriteFile(broken+".new", []byte(`{"cniVersion": "1.1.0", "code": 999, "msg": "`+why+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(broken+".new", broken); err != nil {
			t.Fatal(err)
		}
	}
	failing("out of order")
	w.before(t, `if [ $CNI_COMMAND = ADD ] && [ -e `+broken+` ]; then echo >>`+w.dir+`/tries; cat `+broken+`; exit 1; fi`)
	w.serve(t)
	b := w.start(t, 1)
	tries := func() int {
		text, _ := os.ReadFile(filepath.Join(w.dir, "tries"))
		return strings.Count(string(text), "\n")
	}
	began := time.Now()
	testnet.Await(t, "five tries", func() error {
		if n := tries(); n < 5 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if took := time.Since(began); took < 700*time.Millisecond { // half of 0.1 + 0.2 + 0.4 + 0.8
		t.Errorf("five tries took %v", took)
	}
	said := func(what string) int { return strings.Count(w.resolver.Log(), what) }
	if n := said("attaching failed"); n != 1 {
		t.Errorf("it is told of %d times", n)
	}
	failing("another reason")
	w.resolver.AwaitLog(t, "attaching failed", "another reason")
	testnet.Await(t, "a long pause", func() error {
		if n := tries(); n < 7 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	w.restart(t, b)
	w.publish(b)
	w.await(t, b)
	if took := time.Since(began); took > 2*time.Second { // the pause is 3.2 s at least
		t.Errorf("attached %v after its start", took)
	}
	w.resolver.AwaitLog(t, "msg=attached", "failures=")
	if n := said("attaching failed"); n != 2 {
		t.Errorf("it is told of %d times", n)
	}
}
