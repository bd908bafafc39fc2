package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

// A host is a real daemon with a task: a pause container and what shares its namespace.
type host struct {
	*testnet.Daemon
	pause string
	b     *ecs.Binding
	x     *Index
}

const image = "taskmeta-test"

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{Daemon: testnet.Docker(t, testnet.T(t))}
	files, err := testnet.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	h.Image(t, image, files)
	h.pause = h.Run(t, "--name", "web-pause", "--network", "none", "--label", ecs.LabelTaskARN+"="+arn,
		"--label", ecs.LabelFamily+"=web", image, "/bin/sleep", "1000")
	h.b = bindingOf(h.pause)
	pid, err := strconv.Atoi(h.Pid(t, h.pause))
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := NewClient(h.Host)
	if err != nil {
		t.Fatal(err)
	}
	h.x = New(Config{
		Client: daemon,
		Addresses: func(p int) ([]netip.Addr, error) {
			if p != pid {
				return nil, fmt.Errorf("process %d, want the pause container's %d", p, pid)
			}
			return []netip.Addr{netip.MustParseAddr("10.0.0.7")}, nil
		},
		Counters: func(p int) (map[string]ecs.Counters, error) {
			if p != pid {
				return nil, fmt.Errorf("process %d, want the pause container's %d", p, pid)
			}
			return map[string]ecs.Counters{"eth0": {RxBytes: 42}}, nil
		},
		CanChangeHostNetwork: contained,
		Logger:               slog.New(slog.DiscardHandler),
	})
	return h
}

// slow skips under -short a test that waits for a daemon's own pace.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("waits ten seconds for a Docker daemon")
	}
}

// member starts a container in the task's network namespace.
func (h *host) member(t *testing.T, name string, words ...string) string {
	t.Helper()
	return h.Run(t, append([]string{"--name", name, "--network", "container:web-pause"}, words...)...)
}

func (h *host) must(t *testing.T, words ...string) string {
	t.Helper()
	out, err := h.CLI(words...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A description is what `docker inspect` prints, in words of the test's own.
type description struct {
	Id, Name, Image string
	Created         time.Time
	State           struct {
		Status                string
		ExitCode              int
		StartedAt, FinishedAt time.Time
		Health                *struct {
			Status string
			Log    []struct {
				End      time.Time
				ExitCode int
				Output   string
			}
		}
	}
	HostConfig struct {
		NetworkMode string
		CpuShares   uint64
		Memory      uint64
	}
	Config struct {
		Image        string
		Labels       map[string]string
		ExposedPorts map[string]struct{}
	}
	Mounts []struct{ Name, Source, Destination string }
}

// expected is the container that `docker inspect` describes.
func (h *host) expected(t *testing.T, id string) ecs.Container {
	t.Helper()
	var all []description
	if err := json.Unmarshal([]byte(h.must(t, "inspect", id)), &all); err != nil {
		t.Fatal(err)
	}
	in := all[0]
	c := ecs.Container{
		ID: in.Id, DockerName: in.Name[1:], Name: in.Name[1:], Image: in.Config.Image, ImageID: in.Image,
		Labels: in.Config.Labels, CPU: in.HostConfig.CpuShares, Memory: in.HostConfig.Memory / (1 << 20),
		Created: in.Created, Started: in.State.StartedAt, Finished: in.State.FinishedAt,
		Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.7")},
	}
	if name := in.Config.Labels[ecs.LabelContainerName]; name != "" {
		c.Name = name
	}
	switch in.State.Status {
	case "created":
		c.Known, c.Desired = ecs.StatusCreated, ecs.StatusRunning
	case "exited":
		c.Known, c.Desired, c.ExitCode = ecs.StatusStopped, ecs.StatusStopped, &in.State.ExitCode
	default:
		c.Known, c.Desired = ecs.StatusRunning, ecs.StatusRunning
	}
	if id == h.pause {
		c.Pause, c.Known, c.Desired = true, ecs.StatusResourcesProvisioned, ecs.StatusResourcesProvisioned
	} else {
		c.Joins = strings.TrimPrefix(in.HostConfig.NetworkMode, "container:")
	}
	for port := range in.Config.ExposedPorts {
		number, protocol, _ := strings.Cut(port, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		c.Ports = append(c.Ports, ecs.Port{Number: uint16(n), Protocol: protocol})
	}
	slices.SortFunc(c.Ports, func(a, b ecs.Port) int {
		return strings.Compare(fmt.Sprintf("%05d%s", a.Number, a.Protocol), fmt.Sprintf("%05d%s", b.Number, b.Protocol))
	})
	for _, m := range in.Mounts {
		c.Volumes = append(c.Volumes, ecs.Volume{DockerName: m.Name, Source: m.Source, Destination: m.Destination})
	}
	slices.SortFunc(c.Volumes, func(a, b ecs.Volume) int { return strings.Compare(a.Destination, b.Destination) })
	if v := in.State.Health; v != nil && (v.Status == "healthy" || v.Status == "unhealthy") {
		last := v.Log[len(v.Log)-1]
		c.Health = &ecs.Health{Status: strings.ToUpper(v.Status), Since: last.End, ExitCode: last.ExitCode, Output: last.Output}
	}
	return c
}

// compare waits until the index says of the task what `docker inspect` says.
func (h *host) compare(t *testing.T, what string, ids ...string) {
	t.Helper()
	await(t, what, func() error {
		task, age, err := h.x.Task(t.Context(), h.b)
		if err != nil || age != 0 {
			return fmt.Errorf("age %v, %v", age, err)
		}
		var want []ecs.Container
		for _, id := range ids {
			want = append(want, h.expected(t, id))
		}
		opts := cmp.Options{
			cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		}
		if diff := cmp.Diff(want, task.Containers, opts); diff != "" {
			return fmt.Errorf("-want +got:\n%s", diff)
		}
		return nil
	})
}

func TestARealDaemonsContainers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	// Docker refuses --expose beside a shared namespace, and takes what the image exposes.
	h.must(t, "commit", "--change", "EXPOSE 8080 53/udp 53/tcp", "web-pause", "exposing")
	app := h.member(t, "app", "--memory", "64m", "--cpu-shares", "256",
		"--volume", "/var/cache", "--volume", t.TempDir()+":/data:ro", "--tmpfs", "/scratch",
		"--label", ecs.LabelContainerName+"=application", "--label", "com.example.odd=a \"b\" <c> é\n",
		"--health-cmd", "echo fine", "--health-interval", "200ms", "exposing", "/bin/sleep", "1000")
	first := h.member(t, "init", image, "/bin/sh", "-c", "exit 3")
	sick := h.member(t, "sick", "--health-cmd", "echo ill; exit 7", "--health-interval", "200ms", "--health-retries", "1", image, "/bin/sleep", "1000")
	made := h.must(t, "create", "--name", "made", "--network", "container:"+h.pause[:12], image, "/bin/sleep", "1000")
	h.Run(t, "--name", "stranger", "--network", "none", image, "/bin/sleep", "1000")
	for _, id := range []string{app, sick} {
		await(t, "a health check", func() error {
			if status := h.must(t, "inspect", "--format", "{{.State.Health.Status}}", id); status == "starting" {
				return errors.New(status)
			}
			h.must(t, "pause", id) // or later checks change what is compared
			return nil
		})
	}
	run(t, h.x)
	h.compare(t, "what was there before", h.pause, app, first, sick, made)

	h.must(t, "rename", "made", "renamed")
	h.must(t, "start", made)
	h.compare(t, "rename and start", h.pause, app, first, sick, made)
	h.must(t, "update", "--memory", "32m", "--memory-swap", "64m", "--cpu-shares", "512", made)
	h.compare(t, "update", h.pause, app, first, sick, made)
	h.must(t, "start", first)
	h.must(t, "wait", first)
	h.compare(t, "a second run", h.pause, app, first, sick, made)
	h.must(t, "rm", "--force", sick)
	late := h.member(t, "late", image, "/bin/sleep", "1000")
	h.must(t, "kill", made)
	h.compare(t, "the end of one, the removal of another, and a late one", h.pause, app, first, made, late)
}

func TestARealDaemonsStatistics(t *testing.T) {
	slow(t)
	t.Parallel()
	h := newHost(t)
	app := h.member(t, "app", image, "/bin/sleep", "1000")
	ended := h.member(t, "init", image, "/bin/true")
	h.must(t, "wait", ended)
	run(t, h.x)
	mustTask(t, h.x, h.b)

	type sample struct {
		ID       string                  `json:"id"`
		Read     time.Time               `json:"read"`
		PreRead  time.Time               `json:"preread"`
		Networks map[string]ecs.Counters `json:"networks"`
		Memory   struct{ Usage uint64 }  `json:"memory_stats"`
		PreCPU   struct {
			System uint64 `json:"system_cpu_usage"`
		} `json:"precpu_stats"`
	}
	ask := func() (took time.Duration) {
		start := time.Now()
		stats, err := h.x.Stats(t.Context(), []string{h.pause, app, ended})
		took = time.Since(start)
		if err != nil || stats[ended] != nil {
			t.Fatalf("Stats: %s, %v", stats, err)
		}
		for _, id := range []string{h.pause, app} {
			var s sample
			if err := json.Unmarshal(stats[id], &s); err != nil {
				t.Fatalf("%s: %v", stats[id], err)
			}
			if s.ID != id || s.PreCPU.System == 0 || s.Memory.Usage == 0 || !s.Read.After(s.PreRead) || s.Networks["eth0"].RxBytes != 42 {
				t.Errorf("not a full sample of %s with its interfaces: %s", id, stats[id])
			}
		}
		return took
	}
	cold, warm := ask(), ask()
	t.Logf("the first answer took %v, the second %v", cold, warm)
	if warm > cold/4 {
		t.Errorf("the second answer took %v, as if not from memory; the first %v", warm, cold)
	}

	if err := h.Pause(); err != nil {
		t.Fatal(err)
	}
	await(t, "a daemon that stops sending", func() error {
		stats, err := h.x.Stats(t.Context(), []string{app})
		if errors.Is(err, ecs.ErrDockerUnavailable) || err == nil && stats[app] == nil {
			return nil // the daemon's hang may be noticed before
		}
		return fmt.Errorf("Stats: %s, %v, want none", stats, err)
	})
	if err := h.Resume(); err != nil {
		t.Fatal(err)
	}
	await(t, "the recovery", func() error {
		stats, err := h.x.Stats(t.Context(), []string{app})
		if err == nil && stats[app] == nil {
			err = errNone
		}
		return err
	})
}

func TestARealDaemonThatHangsAndRestarts(t *testing.T) {
	slow(t)
	t.Parallel()
	h := newHost(t)
	h.x.times.probe, h.x.times.call = 100*time.Millisecond, time.Second
	app := h.member(t, "app", image, "/bin/sleep", "1000")
	run(t, h.x)
	h.compare(t, "the task", h.pause, app)
	lost := func() error {
		task, age, err := h.x.Task(t.Context(), h.b)
		if err != nil || age == 0 || len(task.Containers) != 2 {
			return fmt.Errorf("age %v, %v, task %+v", age, err, task)
		}
		return nil
	}

	if err := h.Pause(); err != nil {
		t.Fatal(err)
	}
	await(t, "the hang to be noticed", lost)
	if err := h.Resume(); err != nil {
		t.Fatal(err)
	}
	h.compare(t, "the task after the hang", h.pause, app)

	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	await(t, "the stop to be noticed", lost)
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	h.compare(t, "the task after the restart", h.pause, app)
	h.must(t, "kill", app)
	h.compare(t, "an event after the restart", h.pause, app)
}

// A daemon that ends its containers with itself, and starts them with itself: each end is
// told by the time it has ended, and each start soon after the container's own.
func TestARealDaemonThatEndsItsContainers(t *testing.T) {
	slow(t)
	t.Parallel()
	h := newHost(t)
	h.EndContainers = true
	if err := errors.Join(h.Stop(), h.Start()); err != nil {
		t.Fatal(err)
	}
	var webs []string
	for n := range 3 {
		webs = append(webs, h.Run(t, "--name", fmt.Sprint("web", n), "--network", "none", "--restart", "always", "--init=false", "--stop-signal", "KILL",
			"--label", ecs.LabelTaskARN+"="+arn+strconv.Itoa(n), image, "/bin/sleep", "1000"))
	}
	r := watch(t, h.x)
	run(t, h.x)
	for range 3 {
		for _, id := range webs {
			pid, err := strconv.Atoi(h.Pid(t, id))
			if err != nil {
				t.Fatal(err)
			}
			r.await(t, id, pid)
		}
		if err := h.Stop(); err != nil {
			t.Fatal(err)
		}
		for _, id := range webs {
			if pids := r.pids(id); pids[len(pids)-1] != 0 {
				t.Errorf("the daemon has ended, and of the container is told %v", pids)
			}
		}
		told := make(chan time.Time)
		go func() {
			await(t, "the next life", func() error {
				for _, id := range webs {
					if pids := r.pids(id); pids[len(pids)-1] == 0 {
						return fmt.Errorf("told %v", pids)
					}
				}
				return nil
			})
			told <- time.Now()
		}()
		if err := h.Start(); err != nil {
			t.Fatal(err)
		}
		answers, at := time.Now(), <-told
		started, err := time.Parse(time.RFC3339Nano, h.must(t, "inspect", "--format", "{{.State.StartedAt}}", webs[0]))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("told %v after a container's start, %v after the daemon answers", at.Sub(started), at.Sub(answers))
		if took := at.Sub(answers); took > time.Second {
			t.Errorf("told %v after the daemon answers", took)
		}
	}
}
