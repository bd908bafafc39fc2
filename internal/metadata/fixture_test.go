package metadata

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"taskmeta/internal/ecs"
)

const (
	pauseID = "0000000000000000000000000000000000000000000000000000000000000001"
	appID   = "0000000000000000000000000000000000000000000000000000000000000002"
	initID  = "0000000000000000000000000000000000000000000000000000000000000003"
	otherID = "00000000000000000000000000000000000000000000000000000000000000ff"
	taskARN = "arn:aws:ecs:us-west-2:123456789012:task/default/0123456789abcdef0123456789abcdef"
)

// The loopback network stands for the bridge: each of its addresses can be a task's.
var (
	taskAddr     = netip.MustParseAddr("127.0.0.7")
	otherAddr    = netip.MustParseAddr("127.0.0.8")
	strangerAddr = netip.MustParseAddr("127.0.0.9")
)

// webTask is the task that the ECS agent's answers in testdata/v2 are about.
func webTask() *ecs.Task {
	created := time.Date(2026, 11, 24, 1, 2, 3, 456789012, time.UTC)
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	labels := func(name string) map[string]string {
		return map[string]string{
			ecs.LabelCluster: "default", ecs.LabelTaskARN: taskARN, ecs.LabelFamily: "web", ecs.LabelRevision: "7",
			ecs.LabelContainerName: name,
		}
	}
	exited := 0
	return &ecs.Task{
		Cluster: "default", ARN: taskARN, Family: "web", Revision: "7",
		Desired: ecs.StatusRunning, Known: ecs.StatusRunning,
		CPU: 0.5, Memory: 512,
		PullStarted: created, PullStopped: created.Add(time.Second),
		Tags: map[string]string{"team": "web & mail"},
		Containers: []ecs.Container{{
			ID: pauseID, Name: "~internal~ecs~pause", DockerName: "ecs-web-7-internalecspause",
			Image: "amazon/amazon-ecs-pause:0.1.0", Labels: labels("~internal~ecs~pause"),
			Desired: ecs.StatusResourcesProvisioned, Known: ecs.StatusResourcesProvisioned,
			Created: created, Started: created, Pause: true, Addrs: addrs,
		}, {
			ID: appID, Name: "app", DockerName: "ecs-web-7-app-c2",
			Image: "nginx:1.27", ImageID: "sha256:" + strings.Repeat("ab", 32),
			Ports: []ecs.Port{{Number: 80, Protocol: "tcp"}}, Labels: labels("app"),
			Desired: ecs.StatusRunning, Known: ecs.StatusRunning, CPU: 100, Memory: 256,
			Created: created, Started: created.Add(time.Second), Addrs: addrs,
			Health: &ecs.Health{Status: "HEALTHY", Since: time.Date(2026, 11, 24, 2, 48, 50, 654334554, time.UTC), Output: "ok\n"},
			Volumes: []ecs.Volume{
				{DockerName: "data", Source: "/var/lib/docker/volumes/data/_data", Destination: "/data"},
				{Source: "/srv", Destination: "/srv"},
			},
		}, {
			ID: initID, Name: "init", DockerName: "ecs-web-7-init-c3",
			Image: "busybox:latest", ImageID: "sha256:" + strings.Repeat("cd", 32), Labels: labels("init"),
			Desired: ecs.StatusStopped, Known: ecs.StatusStopped, ExitCode: &exited,
			Created: created, Started: created, Finished: created.Add(2 * time.Second), Addrs: addrs,
		}},
	}
}

// A world is the rest of the resolver as a server sees it: two tasks, and what a test
// makes of them. Change it under its lock, or before the server runs.
type world struct {
	sync.Mutex
	bindings map[netip.Addr]*ecs.Binding
	tasks    map[*ecs.Binding]*ecs.Task
	stats    map[string]json.RawMessage

	bindingErr, taskErr, statsErr error
	age                           time.Duration
}

func newWorld() *world {
	w := &world{
		bindings: make(map[netip.Addr]*ecs.Binding),
		tasks:    make(map[*ecs.Binding]*ecs.Task),
		stats: map[string]json.RawMessage{
			pauseID: json.RawMessage(`{"read":"2026-11-24T01:02:03Z","cpu_stats":{"cpu_usage":{"total_usage":18446744073709551615}}}`),
			appID:   json.RawMessage(`{"read" : "<now>"}`),
			otherID: json.RawMessage(`{"read":"not yours"}`),
		},
	}
	w.bind(taskAddr, webTask())
	w.bind(otherAddr, &ecs.Task{ARN: "other", Containers: []ecs.Container{{ID: otherID, Name: "other"}}})
	return w
}

// bind gives addr a binding of its own, in place of the one it has.
func (w *world) bind(addr netip.Addr, task *ecs.Task) {
	w.Lock()
	defer w.Unlock()
	b := &ecs.Binding{
		Attachment: ecs.Attachment{Network: "ecs-task", Container: task.ARN, IfName: "eth0"},
		Addrs:      []netip.Prefix{netip.PrefixFrom(addr, 22)},
	}
	delete(w.tasks, w.bindings[addr])
	w.bindings[addr], w.tasks[b] = b, task
}

func (w *world) unbind(addr netip.Addr) {
	w.Lock()
	defer w.Unlock()
	delete(w.tasks, w.bindings[addr])
	delete(w.bindings, addr)
}

func (w *world) config() Config {
	return Config{
		BindingOf: func(addr netip.Addr) (*ecs.Binding, error) {
			w.Lock()
			defer w.Unlock()
			if w.bindingErr != nil {
				return nil, w.bindingErr
			}
			if b := w.bindings[addr]; b != nil {
				return b, nil
			}
			return nil, ecs.ErrNoBinding
		},
		TaskOf: func(_ context.Context, b *ecs.Binding) (*ecs.Task, time.Duration, error) {
			w.Lock()
			defer w.Unlock()
			return w.tasks[b], w.age, w.taskErr
		},
		Stats: func(context.Context, []string) (map[string]json.RawMessage, error) {
			w.Lock()
			defer w.Unlock()
			return maps.Clone(w.stats), w.statsErr
		},
		Logger:           slog.New(slog.DiscardHandler),
		AvailabilityZone: "us-west-2a",
		InstanceTags:     map[string]string{"rack": "12"},
	}
}

// serve runs s on a loopback port until the test ends.
func serve(tb testing.TB, server *http.Server) (addr string) {
	tb.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(Listener(l)) }()
	tb.Cleanup(func() {
		if err := server.Close(); err != nil {
			tb.Error(err)
		}
		if err := <-done; err != http.ErrServerClosed {
			tb.Error(err)
		}
	})
	return l.Addr().String()
}

// dial connects to a server as a process at the address from would.
func dial(tb testing.TB, from netip.Addr, to string) *net.TCPConn {
	tb.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 10 * time.Second}
	c, err := d.Dial("tcp4", to)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func readAll(tb testing.TB, r io.Reader) string {
	tb.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}
