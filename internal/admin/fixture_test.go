package admin_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"taskmeta/internal/admin"
	"taskmeta/internal/ecs"
)

// poolSize is what the default subnet has to give.
const poolSize = 1021

var bridge = netip.MustParsePrefix("169.254.172.1/22")

// newServer is the admin server of a host with n tasks of three containers. Every tenth of
// them, from the third on, has gone without its address being freed.
func newServer(n int) *admin.Server {
	tasks := make(map[*ecs.Binding]*ecs.Task)
	state := admin.State{
		BindingsLoads: 7,
		Bridge:        []netip.Prefix{netip.MustParsePrefix("169.254.170.2/32"), bridge},
		Docker: admin.Docker{
			Connected: true, Since: time.Date(2026, 11, 24, 4, 0, 12, 0, time.UTC),
			Containers: 3 * n, Streams: n / 5, Events: uint64(9 * n), Resyncs: 2,
		},
	}
	addr := bridge.Addr()
	for i := range n {
		addr = addr.Next()
		b := newBinding(i, addr)
		state.Bindings = append(state.Bindings, b)
		if i%10 != 2 {
			tasks[b] = newTask(i, b)
		}
	}
	return &admin.Server{
		Host:     "build-7",
		Version:  "v1.2.3",
		Checks:   []admin.Check{passing("bindings"), passing("docker"), passing("endpoint")},
		Requests: admin.NewRequests(),
		State:    func() admin.State { return state },
		TaskOf:   func(b *ecs.Binding) *ecs.Task { return tasks[b] },
	}
}

func newBinding(i int, addr netip.Addr) *ecs.Binding {
	return &ecs.Binding{
		Attachment: ecs.Attachment{Network: "ecs-task", Container: hexID("pause", i), IfName: "eth0"},
		Addrs:      []netip.Prefix{netip.PrefixFrom(addr, bridge.Bits())},
		TaskARN:    "arn:aws:ecs:eu-west-1:123456789012:task/shop/" + hexID("task", i)[:32],
		Created:    time.Date(2026, 11, 24, 4, 1, i%60, 0, time.UTC),
	}
}

func newTask(i int, b *ecs.Binding) *ecs.Task {
	family := []string{"web", "checkout", "search"}[i%3]
	return &ecs.Task{
		Cluster: "shop", ARN: b.TaskARN, Family: family, Revision: fmt.Sprint(i%7 + 1),
		Desired: ecs.StatusRunning, Known: ecs.StatusRunning,
		Containers: []ecs.Container{
			{ID: b.Container, Name: "pause", Image: "pause:3", Known: ecs.StatusResourcesProvisioned, Pause: true},
			{ID: hexID(family, i), Name: family, Image: "registry.example/shop/" + family + ":2026-11-20",
				Known: ecs.StatusRunning, Health: &ecs.Health{Status: "HEALTHY"}},
			{ID: hexID("log-router", i), Name: "log-router", Image: "fluent-bit:3.2", Known: ecs.StatusRunning},
		},
	}
}

// hexID is an ID such as Docker makes.
func hexID(of string, i int) string {
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %d", of, i)))
}

func passing(name string) admin.Check {
	return admin.Check{Name: name, Err: func() error { return nil }}
}

func failing(name, problem string) admin.Check {
	return admin.Check{Name: name, Err: func() error { return errors.New(problem) }}
}

// get asks the handler for a path as a browser of this host does.
func get(t testing.TB, server *admin.Server, path string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = "127.0.0.1:51680"
	w := httptest.NewRecorder()
	server.Handler().ServeHTTP(w, r)
	return w
}
