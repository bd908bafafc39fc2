package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"taskmeta/internal/ecs"
)

// inspectTime is what the daemon below takes for one inspection, about as a real one does.
const inspectTime = 2 * time.Millisecond

// A daemon stands for a Docker daemon with more containers than a machine of two
// processors can start. Nothing ever happens to them.
type daemon struct {
	newest   []container.Summary // the newest first, as Docker lists them
	position map[string]int      // in newest, by ID
	inspect  map[string][]byte
}

// newDaemon makes a daemon with that many tasks of that many containers each, all of them
// in the network namespace of the process pid. The first of each is its pause container.
func newDaemon(tasks, each, pid int) (*daemon, error) {
	d := &daemon{position: make(map[string]int), inspect: make(map[string][]byte)}
	all := tasks * each
	d.newest = make([]container.Summary, all)
	for n := range all {
		c := newContainer(n/each, n%each, pid)
		text, err := json.Marshal(c)
		if err != nil {
			return nil, err
		}
		d.inspect[c.ID] = text
		s := container.Summary{ID: c.ID, Names: []string{c.Name}, Labels: c.Config.Labels, State: c.State.Status}
		s.HostConfig.NetworkMode = string(c.HostConfig.NetworkMode)
		d.position[c.ID] = all - 1 - n
		d.newest[all-1-n] = s
	}
	return d, nil
}

func taskARN(task int) string {
	return fmt.Sprintf("arn:aws:ecs:us-west-2:123456789012:task/default/%032x", task)
}

// containerID is the ID of a task's nth container, 0 being the pause container.
func containerID(task, n int) string {
	return fmt.Sprintf("%016x%048x", uint64(task*100+n+1)*0x9e3779b97f4a7c15, task*100+n)
}

func newContainer(task, n, pid int) *container.InspectResponse {
	name, mode := "~internal~ecs~pause", "none"
	if n > 0 {
		name, mode = "app"+strconv.Itoa(n), "container:"+containerID(task, 0)
	}
	at := time.Unix(1700000000+int64(task*100+n), 0).UTC()
	return &container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: containerID(task, n), Name: fmt.Sprintf("/ecs-web-7-%s-%d", strings.Trim(name, "~"), task),
			Image:   "sha256:" + containerID(1000, 0),
			Created: at.Format(time.RFC3339Nano),
			State: &container.State{
				Status: container.StateRunning, Running: true, Pid: pid,
				StartedAt: at.Add(time.Second).Format(time.RFC3339Nano), FinishedAt: "0001-01-01T00:00:00Z",
			},
			HostConfig: &container.HostConfig{
				NetworkMode: container.NetworkMode(mode),
				Resources:   container.Resources{CPUShares: 256, Memory: 64 << 20},
			},
		},
		Config: &container.Config{
			Image: "registry.example/team/web:1.27",
			Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "STAGE=production"},
			Labels: map[string]string{
				ecs.LabelTaskARN: taskARN(task), ecs.LabelCluster: "default", ecs.LabelFamily: "web", ecs.LabelRevision: "7",
				ecs.LabelContainerName: name,
			},
		},
		Mounts: []container.MountPoint{{Name: "data", Source: "/var/lib/docker/volumes/data/_data", Destination: "/data"}},
	}
}

// serve answers on a unix socket until the function it returns is called.
func (d *daemon) serve(path string) (stop func() error, err error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: d}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	return func() error {
		err := server.Close()
		if e := <-done; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	}, nil
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/") // without the version
	id, inspected := strings.CutSuffix(strings.TrimPrefix(path, "containers/"), "/json")
	switch {
	case r.URL.Path == "/_ping":
		w.Header().Set("Api-Version", "1.41")
	case path == "events":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case path == "containers/json":
		d.list(w, r.URL.Query())
	case inspected && d.inspect[id] != nil:
		pause(r.Context(), inspectTime)
		_, _ = w.Write(d.inspect[id])
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"message":"no %s"}`, path)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// list knows the filters that the resolver uses.
func (d *daemon) list(w http.ResponseWriter, query url.Values) {
	var filters map[string]map[string]bool
	if text := query.Get("filters"); text != "" {
		if err := json.Unmarshal([]byte(text), &filters); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	from := d.newest
	for id := range filters["before"] {
		from = from[d.position[id]+1:]
	}
	limit, _ := strconv.Atoi(query.Get("limit"))
	page := []container.Summary{}
	for _, s := range from {
		if limit > 0 && len(page) == limit {
			break
		}
		matches := true
		for id := range filters["id"] {
			matches = matches && s.ID == id
		}
		for label := range filters["label"] {
			matches = matches && label == ecs.LabelTaskARN+"="+s.Labels[ecs.LabelTaskARN]
		}
		if matches {
			page = append(page, s)
		}
	}
	_ = json.NewEncoder(w).Encode(page)
}
