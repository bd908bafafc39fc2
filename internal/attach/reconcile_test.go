package attach

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

const arn = "arn:aws:ecs:us-west-2:123456789012:task/default/web"

// A container that starts is attached at once, though the daemon does not answer about any
// other: eight that started before it, and a list of a hundred.
func TestAnAttachDoesNotWaitForOtherContainers(t *testing.T) {
	t.Parallel()
	testnet.Need(t)
	dir := plugin(t)
	f := fakedocker.T(t)
	for n := range 100 {
		f.Keep(fakedocker.Container(n, "", ""))
	}
	web := running(1000, arn)
	f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
		return kind == "inspect" && !strings.Contains(r.URL.Path, web.ID) && fakedocker.Hang(kind, w, r)
	})
	f.Serve(t)
	reconcile(t, f.Host, dir)
	for n := range 8 {
		f.Put(events.ActionStart, fakedocker.Container(n, "", ""))
	}
	testnet.Await(t, "eight that hang", func() error {
		if n := f.Count("inspect"); n < 8 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	f.Keep(web)
	started := time.Now()
	f.Publish(events.Message{
		Type: events.ContainerEventType, Action: events.ActionStart,
		Actor: events.Actor{ID: web.ID, Attributes: web.Config.Labels},
	})
	awaitVerb(t, dir, "ADD", web.ID)
	if took := time.Since(started); took > 3*time.Second { // an inspection may hang for 5 s
		t.Errorf("attached after %v", took)
	}
}

// A binding whose network namespace is gone is freed, also if its container runs again, with
// a label or without one.
func TestABindingThatIsLeftIsFreed(t *testing.T) {
	t.Parallel()
	testnet.Need(t)
	dir := plugin(t)
	f := fakedocker.T(t)
	plain, removed := running(1, ""), running(2, "")
	f.Keep(plain)
	f.Serve(t)
	s, err := bindingdb.Open(t.Context(), filepath.Join(dir, "bindings.db"), bindingdb.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := ecs.NewPool(netip.MustParsePrefix("169.254.172.0/22"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []ecs.Attachment{
		{Network: BuiltinNetwork, Container: plain.ID, IfName: IfName},
		{Network: BuiltinNetwork, Container: removed.ID, IfName: "eth7"},
	} {
		b := ecs.Binding{Attachment: key, Netns: "/proc/0/ns/net", Created: time.Now()}
		if _, err := s.Acquire(b, bindingdb.Want{Pool: pool}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	reconcile(t, f.Host, dir)
	awaitVerb(t, dir, "DEL", plain.ID)
	awaitVerb(t, dir, "DEL", removed.ID)
}

// A detach that fails is tried again, whether the daemon knows the container or is gone.
func TestADetachIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newReconciler(nil, func(string) { t.Error("inspected anew") })
	j, ended := &job{}, docker.Container{ID: "c1"}
	for failures := range 3 {
		if r.over(t.Context(), "c1", j, work{told: &ended}, true) || j.told != &ended {
			t.Fatalf("after %d failures it is over: %+v", failures+1, j)
		}
		*j = job{}
	}
	if !r.over(t.Context(), "c1", j, work{told: &ended}, false) {
		t.Error("it is not over, though it succeeded")
	}
}

// running is a container that runs in the test's own network namespace.
func running(n int, arn string) *container.InspectResponse {
	c := fakedocker.Container(n, "", arn)
	c.State.Pid = os.Getpid()
	return c
}

// plugin makes a folder with a plugin that leaves a file for each verb.
func plugin(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script := "#!/bin/sh\ntouch " + dir + "/$CNI_COMMAND-$CNI_CONTAINERID\necho '{\"cniVersion\": \"1.1.0\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "ecs-bridge"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func awaitVerb(t *testing.T, dir, verb, container string) {
	t.Helper()
	testnet.Await(t, "the plugin's "+verb, func() error {
		_, err := os.Stat(filepath.Join(dir, verb+"-"+container))
		return err
	})
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
