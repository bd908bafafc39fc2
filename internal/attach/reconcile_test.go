package attach

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

// A container that starts is attached at once, though the daemon does not answer about any
// other: eight that started before it, and a list of a hundred.
func TestAnAttachDoesNotWaitForOtherContainers(t *testing.T) {
	t.Parallel()
	testnet.Need(t)
	dir := t.TempDir()
	id := func(n int) string { return fmt.Sprintf("%064d", n) }
	const ours = 1000
	labels := map[string]string{ecs.LabelTaskARN: "arn:aws:ecs:us-west-2:123456789012:task/default/web"}
	host := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case strings.HasSuffix(path, "/events"):
			for n := range 8 {
				answer(w, events.Message{Type: events.ContainerEventType, Action: events.ActionStart, Actor: events.Actor{ID: id(n)}})
			}
			time.Sleep(300 * time.Millisecond)
			answer(w, events.Message{Type: events.ContainerEventType, Action: events.ActionStart, Actor: events.Actor{ID: id(ours), Attributes: labels}})
			<-r.Context().Done()
		case strings.HasSuffix(path, "/containers/json"):
			var all []container.Summary
			for n := range 100 {
				all = append(all, container.Summary{ID: id(n), State: container.StateRunning})
			}
			answer(w, all)
		case strings.Contains(path, id(ours)):
			answer(w, container.InspectResponse{
				ContainerJSONBase: &container.ContainerJSONBase{
					ID: id(ours), Name: "/web",
					State:      &container.State{Status: container.StateRunning, Running: true, Pid: os.Getpid()},
					HostConfig: &container.HostConfig{NetworkMode: "none"},
				},
				Config: &container.Config{Labels: labels},
			})
		default:
			<-r.Context().Done()
		}
	})
	plugin := "#!/bin/sh\ntouch " + dir + "/$CNI_COMMAND-$CNI_CONTAINERID\necho '{\"cniVersion\": \"1.1.0\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "ecs-bridge"), []byte(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	reconcile(t, host, dir)
	await(t, 3*time.Second, "the plugin's ADD", func() error {
		_, err := os.Stat(filepath.Join(dir, "ADD-"+id(ours)))
		return err
	})
}

// fakeDaemon answers pings, and else as serve does.
func fakeDaemon(t *testing.T, serve http.HandlerFunc) (host string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fakedocker") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/_ping") {
			serve(w, r)
		}
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return "unix://" + socket
}

func answer(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v)
	w.(http.Flusher).Flush()
}

// reconcile runs an attacher and its index of the daemon until the test ends. The plugins
// and the bindings file are in dir.
func reconcile(t *testing.T, host, dir string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	daemon, err := docker.NewClient(host)
	if err != nil {
		t.Fatal(err)
	}
	index := docker.New(docker.Config{
		Client: daemon, Logger: log,
		Addresses:            func(int) ([]netip.Addr, error) { return nil, nil },
		Counters:             func(int) (map[string]ecs.Counters, error) { return nil, nil },
		CanChangeHostNetwork: func(int) bool { return false },
	})
	ns, err := netns.Own()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	a, err := New(Config{Docker: daemon, Netns: ns, DB: filepath.Join(dir, "bindings.db"), PluginPath: []string{dir}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- index.Run(ctx) }()
	go func() { done <- a.Run(ctx, index) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// await waits until check has nothing to complain of.
func await(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
