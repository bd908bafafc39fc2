package attach

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"taskmeta/internal/backoff"
	"taskmeta/internal/docker"
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
	failing  map[string]*failing // by container ID
}

// A failing is a container whose last attempt to attach or to detach it failed.
type failing struct {
	Waiting
	attaching bool
	pid       int // of the process that it was told of
	pause     backoff.Backoff
	said      string // what was logged of it
}

// State returns how attaching goes. A resolver without --auto-attach has no attacher: that of
// nil is empty.
func (a *Attacher) State() State {
	if a == nil {
		return State{}
	}
	p := &a.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	s := State{Failures: p.failures}
	for _, f := range p.failing {
		if f.attaching {
			s.Waiting = append(s.Waiting, f.Waiting)
		}
	}
	slices.SortFunc(s.Waiting, func(a, b Waiting) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Container, b.Container))
	})
	return s
}

// failed takes down that an attempt failed, which was to attach c unless it has ended. It
// returns the pause before the next, and whether the reason is a new one. A process that has
// started since the last attempt begins anew.
func (p *progress) failed(c docker.Container, err error) (pause time.Duration, news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures++
	f := p.of(c, err)
	f.Attempts++
	news = f.say(err)
	return f.pause.Next(), news
}

// hopeless takes down that c can't be attached, and reports whether that is news.
func (p *progress) hopeless(c docker.Container, err error) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of(c, err).say(err)
}

func (p *progress) of(c docker.Container, err error) *failing {
	f := p.failing[c.ID]
	if f == nil {
		f = &failing{Waiting: Waiting{Container: c.ID, Since: time.Now()}, pid: c.Pid}
		if p.failing == nil {
			p.failing = make(map[string]*failing)
		}
		p.failing[c.ID] = f
	}
	if f.pid != c.Pid {
		f.pid = c.Pid
		f.pause.Reset()
	}
	f.Name, f.attaching, f.Err = cmp.Or(c.Name, f.Name), c.Pid != 0, err
	return f
}

// say reports whether an error says something else than what was said last. Numbers in it,
// such as process IDs, make no difference.
func (f *failing) say(err error) (news bool) {
	text := strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, err.Error())
	news = f.said != text
	f.said = text
	return news
}

// succeeded takes down that nothing is left to do to a container, and returns how many
// attempts had failed before.
func (p *progress) succeeded(id string) (attempts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.failing[id]; f != nil {
		attempts = f.Attempts
	}
	delete(p.failing, id)
	return attempts
}
