// Package fakedocker is a Docker daemon for tests and benchmarks, faked at the wire: a unix
// socket that speaks as much of the engine's API as the resolver asks for.
package fakedocker

import (
	"context"
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

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/versions"

	"taskmeta/internal/ecs"
)

// A Daemon does what a real one cannot be made to do: hang in the middle, answer garbage,
// lose events, hold ten thousand containers.
type Daemon struct {
	Host string // the value of DOCKER_HOST

	mu         sync.Mutex
	server     *http.Server
	served     chan error
	containers []*kept // in the order of their creation
	byID       map[string]*kept
	past       []events.Message
	subscribed map[chan events.Message]struct{}
	asked      map[string]int // requests, by kind
	streams    int            // open streams of statistics
	instead    Handler
	sample     Sample
	api        [2]string // the least and the highest version of the API
}

// kept is a container as the daemon describes it.
type kept struct {
	inspection []byte // in JSON
	summary    container.Summary
}

// A Handler answers, in the daemon's place, the requests that it returns true for. Their
// kind is "inspect", "stats", or the path without the version.
type Handler func(kind string, w http.ResponseWriter, r *http.Request) bool

// A Sample gives the JSON of the nth sample of a container's statistics, false for the end
// of the stream.
type Sample func(id string, n int) (string, bool)

// sampleTime is between two samples of a stream.
const sampleTime = 10 * time.Millisecond

// New makes a daemon without containers that will listen at a path.
func New(socket string) *Daemon {
	return &Daemon{
		Host:       "unix://" + socket,
		byID:       make(map[string]*kept),
		subscribed: make(map[chan events.Message]struct{}),
		asked:      make(map[string]int),
		api:        [2]string{"1.24", "1.41"},
		sample: func(id string, n int) (string, bool) {
			preread := "0001-01-01T00:00:00Z"
			if n > 0 {
				preread = "2026-01-01T00:00:00Z"
			}
			return fmt.Sprintf(`{"read":"2026-01-01T00:00:01Z","preread":%q,"n":%d,"id":%q}`, preread, n, id), true
		},
	}
}

// T is New for a test.
func T(t testing.TB) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "fakedocker") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return New(filepath.Join(dir, "docker.sock"))
}

// Start lets the daemon answer until it is stopped. It may be started again then.
func (d *Daemon) Start() error {
	l, err := net.Listen("unix", strings.TrimPrefix(d.Host, "unix://"))
	if err != nil {
		return err
	}
	server, served := &http.Server{Handler: d}, make(chan error, 1)
	d.mu.Lock()
	d.server, d.served = server, served
	d.mu.Unlock()
	go func() { served <- server.Serve(l) }()
	return nil
}

// Serve is Start until the end of a test.
func (d *Daemon) Serve(t testing.TB) {
	t.Helper()
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// Stop ends the daemon, if it runs, and all its connections.
func (d *Daemon) Stop() error {
	d.mu.Lock()
	server, served := d.server, d.served
	d.server = nil
	d.mu.Unlock()
	if server == nil {
		return nil
	}
	err := server.Close()
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// CloseAPI has the daemon take no more requests, as one does first that ends in good order.
// What is under way goes on, the events too, until Stop.
func (d *Daemon) CloseAPI() {
	d.mu.Lock()
	server := d.server
	d.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // or it would wait for what is under way
	_ = server.Shutdown(ctx)
}

// Replace sets what answers in the daemon's place, nil for nothing.
func (d *Daemon) Replace(instead Handler) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.instead = instead
}

// SetSample sets what the daemon sends as statistics.
func (d *Daemon) SetSample(sample Sample) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sample = sample
}

// SetAPI sets which versions of the API the daemon speaks, as 1.44.
func (d *Daemon) SetAPI(least, highest string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.api = [2]string{least, highest}
}

// Count returns how many requests of a kind there were.
func (d *Daemon) Count(kind string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[kind]
}

// OpenStreams returns how many streams of statistics are open.
func (d *Daemon) OpenStreams() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.streams
}

// Keep adds containers, or puts them in the place of those with their IDs, without an event.
func (d *Daemon) Keep(containers ...*container.InspectResponse) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range containers {
		k := &kept{summary: container.Summary{ID: c.ID, Names: []string{c.Name}, Labels: c.Config.Labels, State: c.State.Status}}
		k.summary.HostConfig.NetworkMode = string(c.HostConfig.NetworkMode)
		k.inspection, _ = json.Marshal(c) // every value of its types can be
		if old := d.byID[c.ID]; old != nil {
			d.containers[slices.Index(d.containers, old)] = k
		} else {
			d.containers = append(d.containers, k)
		}
		d.byID[c.ID] = k
	}
}

// Forget removes a container without an event.
func (d *Daemon) Forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.containers = slices.DeleteFunc(d.containers, func(k *kept) bool { return k.summary.ID == id })
	delete(d.byID, id)
}

// Put is Keep with an event of the container.
func (d *Daemon) Put(action events.Action, c *container.InspectResponse) {
	d.Keep(c)
	d.emit(action, c.ID)
}

// Remove is Forget with an event.
func (d *Daemon) Remove(id string) {
	d.Forget(id)
	d.emit(events.ActionDestroy, id)
}

func (d *Daemon) emit(action events.Action, id string) {
	d.Publish(events.Message{Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: id}})
}

// Publish sends an event to all that follow them, of now unless it has a time.
func (d *Daemon) Publish(m events.Message) {
	if m.TimeNano == 0 {
		m.Time, m.TimeNano = time.Now().Unix(), time.Now().UnixNano()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.past = append(d.past, m)
	for c := range d.subscribed {
		c <- m
	}
}

// LoseEvents makes the daemon forget the events that were.
func (d *Daemon) LoseEvents() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.past = nil
}

func (d *Daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, version := r.URL.Path, ""
	if first, rest, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/"); ok && strings.HasPrefix(first, "v1.") {
		path, version = "/"+rest, strings.TrimPrefix(first, "v")
	}
	kind, id := path, ""
	if parts := strings.Split(path, "/"); len(parts) == 4 && parts[1] == "containers" {
		kind, id = map[string]string{"json": "inspect", "stats": "stats"}[parts[3]], parts[2]
	}
	d.mu.Lock()
	d.asked[kind]++
	instead, api := d.instead, d.api
	d.mu.Unlock()
	if instead != nil && instead(kind, w, r) {
		return
	}
	if refusesVersion(w, version, api) {
		return
	}
	switch kind {
	case "/_ping":
		w.Header().Set("Api-Version", api[1])
	case "/events":
		d.serveEvents(w, r)
	case "/containers/json":
		d.ServeList(w, r)
	case "inspect":
		d.mu.Lock()
		k := d.byID[id]
		d.mu.Unlock()
		if k == nil {
			notFound(w, id)
			return
		}
		w.Write(k.inspection)
	case "/version":
		json.NewEncoder(w).Encode(types.Version{Version: "fake", APIVersion: api[1], MinAPIVersion: api[0]})
	case "stats":
		d.serveStats(w, r, id)
	default:
		http.Error(w, path, http.StatusNotImplemented)
	}
}

// refusesVersion refuses a version of the API in Docker's words.
func refusesVersion(w http.ResponseWriter, version string, api [2]string) bool {
	message := ""
	switch {
	case version == "":
		return false
	case versions.LessThan(version, api[0]):
		message = fmt.Sprintf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", version, api[0])
	case versions.GreaterThan(version, api[1]):
		message = fmt.Sprintf("client version %s is too new. Maximum supported API version is %s", version, api[1])
	default:
		return false
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	fmt.Fprintf(w, `{"message":%q}`, message)
	return true
}

func notFound(w http.ResponseWriter, id string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"message":"No such container: %s"}`, id)
}

func (d *Daemon) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	c := make(chan events.Message, 1000)
	d.mu.Lock()
	past := slices.Clone(d.past[max(0, len(d.past)-256):])
	d.subscribed[c] = struct{}{}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.subscribed, c)
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

// ServeList answers a request for the list of containers.
func (d *Daemon) ServeList(w http.ResponseWriter, r *http.Request) {
	var filters map[string]map[string]bool
	if text := r.URL.Query().Get("filters"); text != "" {
		if err := json.Unmarshal([]byte(text), &filters); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	d.mu.Lock()
	defer d.mu.Unlock()
	from := d.containers
	for before := range filters["before"] {
		if d.byID[before] == nil {
			notFound(w, before)
			return
		}
		from = from[:slices.Index(from, d.byID[before])]
	}
	page := []container.Summary{}
	for _, k := range slices.Backward(from) {
		if limit > 0 && len(page) == limit {
			break
		}
		matches := true
		for id := range filters["id"] {
			matches = matches && strings.HasPrefix(k.summary.ID, id)
		}
		for label := range filters["label"] {
			key, value, _ := strings.Cut(label, "=")
			matches = matches && k.summary.Labels[key] == value
		}
		if matches {
			page = append(page, k.summary)
		}
	}
	json.NewEncoder(w).Encode(page)
}

func (d *Daemon) serveStats(w http.ResponseWriter, r *http.Request, id string) {
	d.mu.Lock()
	known, sample := d.byID[id] != nil, d.sample
	d.streams++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.streams--
	}()
	if !known {
		notFound(w, id)
		return
	}
	for n := 0; ; n++ {
		w.(http.Flusher).Flush()
		select {
		case <-time.After(sampleTime):
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
