// Package fakedocker is a Docker daemon for tests, faked at the wire.
package fakedocker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/ecs"
)

// A Daemon is a Docker daemon on a unix socket that does what a real one cannot be made to
// do: hang in the middle, answer garbage, lose events, hold ten thousand containers.
type Daemon struct {
	Host string

	mu         sync.Mutex
	server     *http.Server
	containers []*container.InspectResponse // in the order of their creation
	byID       map[string]*container.InspectResponse
	past       []events.Message
	subscribed map[chan events.Message]struct{}
	asked      map[string]int // requests, by kind
	streams    int            // open streams of statistics

	// instead, if set, answers in the daemon's place the requests it returns true for.
	instead func(kind string, w http.ResponseWriter, r *http.Request) bool
	// sample gives the JSON of the nth sample of a stream, false for the stream's end.
	sample func(id string, n int) (string, bool)
	// every is the time between two samples.
	every time.Duration
}

func T(t testing.TB) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "fakedocker") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &Daemon{
		Host:       "unix://" + filepath.Join(dir, "docker.sock"),
		byID:       make(map[string]*container.InspectResponse),
		subscribed: make(map[chan events.Message]struct{}),
		asked:      make(map[string]int),
		every:      10 * time.Millisecond,
		sample: func(id string, n int) (string, bool) {
			preread := "0001-01-01T00:00:00Z"
			if n > 0 {
				preread = "2026-01-01T00:00:00Z"
			}
			return fmt.Sprintf(`{"read":"2026-01-01T00:00:01Z","preread":%q,"n":%d,"id":%q}`, preread, n, id), true
		},
	}
	return f
}

// Serve lets the daemon answer until stop or the test's end.
func (f *Daemon) Serve(t testing.TB) {
	t.Helper()
	socket := strings.TrimPrefix(f.Host, "unix://")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	f.mu.Lock()
	f.server = server
	f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// Stop ends the daemon and all its connections.
func (f *Daemon) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.server.Close()
}

// Replace sets what answers in the daemon's place, nil for nothing.
func (f *Daemon) Replace(instead func(kind string, w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.instead = instead
}

// SetSample sets what the daemon sends as statistics.
func (f *Daemon) SetSample(sample func(id string, n int) (string, bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sample = sample
}

// LoseEvents makes the daemon forget the events that were.
func (f *Daemon) LoseEvents() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.past = nil
}

// Count returns how many requests of a kind there were.
func (f *Daemon) Count(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[kind]
}

func (f *Daemon) OpenStreams() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams
}

// Put adds a container, or puts it in the place of the one with its ID, and says so.
func (f *Daemon) Put(action events.Action, c *container.InspectResponse) {
	f.Keep(c)
	f.emit(action, c.ID)
}

// Keep is Put without an event.
func (f *Daemon) Keep(containers ...*container.InspectResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range containers {
		if f.byID[c.ID] == nil {
			f.containers = append(f.containers, c)
		} else {
			f.containers[slices.Index(f.containers, f.byID[c.ID])] = c
		}
		f.byID[c.ID] = c
	}
}

func (f *Daemon) Remove(id string) {
	f.Forget(id)
	f.emit(events.ActionDestroy, id)
}

func (f *Daemon) Forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers = slices.DeleteFunc(f.containers, func(c *container.InspectResponse) bool { return c.ID == id })
	delete(f.byID, id)
}

func (f *Daemon) emit(action events.Action, id string) {
	f.Publish(events.Message{Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: id}})
}

func (f *Daemon) Publish(m events.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.past = append(f.past, m)
	for c := range f.subscribed {
		c <- m
	}
}

func (f *Daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if version, rest, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/"); ok && strings.HasPrefix(version, "v1.") {
		path = "/" + rest
	}
	kind, id := path, ""
	if parts := strings.Split(path, "/"); len(parts) == 4 && parts[1] == "containers" {
		kind, id = map[string]string{"json": "inspect", "stats": "stats"}[parts[3]], parts[2]
	}
	f.mu.Lock()
	f.asked[kind]++
	instead := f.instead
	f.mu.Unlock()
	if instead != nil && instead(kind, w, r) {
		return
	}
	switch kind {
	case "/_ping":
		w.Header().Set("Api-Version", "1.41")
	case "/events":
		f.serveEvents(w, r)
	case "/containers/json":
		f.ServeList(w, r)
	case "inspect":
		f.mu.Lock()
		body, err := json.Marshal(f.byID[id])
		f.mu.Unlock()
		if err != nil || string(body) == "null" {
			notFound(w, id)
			return
		}
		w.Write(body)
	case "stats":
		f.serveStats(w, r, id)
	default:
		http.Error(w, path, http.StatusNotImplemented)
	}
}

func notFound(w http.ResponseWriter, id string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"message":"No such container: %s"}`, id)
}

func (f *Daemon) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	c := make(chan events.Message, 1000)
	f.mu.Lock()
	past := slices.Clone(f.past[max(0, len(f.past)-256):])
	f.subscribed[c] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subscribed, c)
	}()
	out := json.NewEncoder(w)
	if r.URL.Query().Get("since") == "0" {
		for _, m := range past {
			out.Encode(m)
		}
	}
	for {
		w.(http.Flusher).Flush()
		select {
		case m := <-c:
			out.Encode(m)
		case <-r.Context().Done():
			return
		}
	}
}

func (f *Daemon) ServeList(w http.ResponseWriter, r *http.Request) {
	var args map[string]map[string]bool
	if text := r.URL.Query().Get("filters"); text != "" {
		if err := json.Unmarshal([]byte(text), &args); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	f.mu.Lock()
	defer f.mu.Unlock()
	skip := false
	for before := range args["before"] {
		if skip = f.byID[before] != nil; !skip {
			notFound(w, before)
			return
		}
	}
	page := []container.Summary{}
	for _, c := range slices.Backward(f.containers) {
		if skip {
			skip = !args["before"][c.ID]
			continue
		}
		matches := true
		for id := range args["id"] {
			matches = matches && strings.HasPrefix(c.ID, id)
		}
		for label := range args["label"] {
			key, value, _ := strings.Cut(label, "=")
			matches = matches && c.Config.Labels[key] == value
		}
		if matches && (limit == 0 || len(page) < limit) {
			s := container.Summary{ID: c.ID, Names: []string{c.Name}, Labels: c.Config.Labels, State: c.State.Status}
			s.HostConfig.NetworkMode = string(c.HostConfig.NetworkMode)
			page = append(page, s)
		}
	}
	json.NewEncoder(w).Encode(page)
}

func (f *Daemon) serveStats(w http.ResponseWriter, r *http.Request, id string) {
	f.mu.Lock()
	known, sample, every := f.byID[id] != nil, f.sample, f.every
	f.streams++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.streams--
	}()
	if !known {
		notFound(w, id)
		return
	}
	for n := 0; ; n++ {
		w.(http.Flusher).Flush()
		select {
		case <-time.After(every):
		case <-r.Context().Done():
			return
		}
		text, ok := sample(id, n)
		if !ok {
			return
		}
		fmt.Fprintln(w, text)
	}
}

// Hang answers nothing until the client gives up.
func Hang(_ string, _ http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	return true
}

// ID is a container ID made of a number, with another start for each.
func ID(n int) string { return fmt.Sprintf("%016x%048x", uint64(n+1)*0x9e3779b97f4a7c15, n) }

// Container is a running container of a task, which shares the network namespace of
// the pause container, or is that if pause is empty.
func Container(n int, pause, arn string) *container.InspectResponse {
	mode := "none"
	if pause != "" {
		mode = "container:" + pause
	}
	name := "web-" + strconv.Itoa(n)
	if pause == "" {
		name = "pause-" + strconv.Itoa(n)
	}
	return &container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: ID(n), Name: "/" + name, Image: "sha256:" + ID(1000),
			Created: time.Unix(1700000000+int64(n), 0).UTC().Format(time.RFC3339Nano),
			State: &container.State{
				Status: container.StateRunning, Running: true, Pid: n + 1,
				StartedAt:  time.Unix(1700000001+int64(n), 0).UTC().Format(time.RFC3339Nano),
				FinishedAt: "0001-01-01T00:00:00Z",
			},
			HostConfig: &container.HostConfig{
				NetworkMode: container.NetworkMode(mode),
				Resources:   container.Resources{CPUShares: 256, Memory: 64 << 20},
			},
		},
		Config: &container.Config{
			Image: "registry.example/team/web:1.27",
			Labels: map[string]string{
				ecs.LabelTaskARN: arn, ecs.LabelCluster: "default", ecs.LabelFamily: "web", ecs.LabelRevision: "7",
				ecs.LabelContainerName: name,
			},
		},
		Mounts: []container.MountPoint{{Name: "data", Source: "/var/lib/docker/volumes/data/_data", Destination: "/data"}},
	}
}

// Stopped is c after it has exited.
func Stopped(c *container.InspectResponse, code int) *container.InspectResponse {
	base, state := *c.ContainerJSONBase, *c.State
	state.Status, state.Running, state.Pid, state.ExitCode = container.StateExited, false, 0, code
	state.FinishedAt = "2026-01-02T03:04:05.678901234Z"
	base.State = &state
	changed := *c
	changed.ContainerJSONBase = &base
	return &changed
}
