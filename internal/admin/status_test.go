package admin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/admin"
	"taskmeta/internal/ecs"
)

func TestStatusJSON(t *testing.T) {
	t.Parallel()
	server := newServer(3)
	server.Checks = []admin.Check{passing("bindings"), failing("docker", "no answer; is dockerd running?")}
	server.Requests.Observe("none", 404, time.Millisecond)
	got := status(t, server)
	state := server.State()
	attachment := func(i int) ecs.Attachment { return state.Bindings[i].Attachment }
	present := func(i int, addr, family, revision string) admin.Task {
		return admin.Task{
			Addrs: []netip.Addr{netip.MustParseAddr(addr)}, State: admin.TaskPresent,
			Attached: state.Bindings[i].Created, Attachment: attachment(i),
			Cluster: "shop", ARN: state.Bindings[i].TaskARN, Family: family, Revision: revision, Known: ecs.StatusRunning,
			Containers: []admin.Container{
				{ID: attachment(i).Container, Name: "pause", Image: "pause:3", Status: ecs.StatusResourcesProvisioned, Pause: true},
				{ID: hexID(family, i), Name: family, Image: "registry.example/shop/" + family + ":2026-11-20", Status: ecs.StatusRunning, Health: "HEALTHY"},
				{ID: hexID("log-router", i), Name: "log-router", Image: "fluent-bit:3.2", Status: ecs.StatusRunning},
			},
		}
	}
	want := admin.Status{
		Host:    "build-7",
		Version: "v1.2.3",
		Checks: []admin.Finding{
			{Name: "bindings", OK: true},
			{Name: "docker", Problem: "no answer; is dockerd running?"},
		},
		Docker:        state.Docker,
		Guard:         admin.Guard{UnknownPorts: []string{}},
		BindingsKnown: true,
		BindingsLoads: 7,
		Pools: []admin.Pool{
			{Subnet: bridge.Masked(), Gateway: bridge.Addr(), Used: 3, Free: 1018},
		},
		Tasks: []admin.Task{
			present(0, "169.254.172.2", "web", "1"),
			present(1, "169.254.172.3", "checkout", "2"),
			{
				Addrs: []netip.Addr{netip.MustParseAddr("169.254.172.4")}, State: admin.TaskGone,
				Attached: state.Bindings[2].Created, Attachment: attachment(2), ARN: state.Bindings[2].TaskARN,
				Containers: []admin.Container{},
			},
		},
	}
	if age := time.Since(got.Time); age < 0 || age > time.Minute || got.Started.After(got.Time) {
		t.Errorf("started %s, told %s", got.Started, got.Time)
	}
	if got.Requests.Total.Refused != 1 || len(got.Requests.Seconds) != 60 {
		t.Errorf("requests %+v", got.Requests)
	}
	got.Time, got.Started, got.Requests = time.Time{}, time.Time{}, admin.Traffic{}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestStateOfATask(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		task *ecs.Task
		away bool
		want string
	}{
		"it runs":                           {task: &ecs.Task{Desired: ecs.StatusRunning}, want: admin.TaskPresent},
		"its pause container has ended":     {task: &ecs.Task{Desired: ecs.StatusStopped}, want: admin.TaskGone},
		"Docker knows nothing of it":        {want: admin.TaskGone},
		"Docker is away":                    {away: true, want: admin.TaskUnknown},
		"Docker is away, it ran until then": {task: &ecs.Task{Desired: ecs.StatusRunning}, away: true, want: admin.TaskPresent},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newServer(1)
			state := server.State()
			state.Docker.Connected = !test.away
			server.State = func() admin.State { return state }
			server.TaskOf = func(*ecs.Binding) *ecs.Task { return test.task }
			if got := status(t, server).Tasks[0].State; got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestPools(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		bridge, bound []string
		want          []string // subnet, gateway, used, free
	}{
		"nothing is known":                    {},
		"a subnet of the bridge":              {bridge: []string{"169.254.172.1/22"}, want: []string{"169.254.172.0/22 169.254.172.1 0 1021"}},
		"the endpoint's address is no subnet": {bridge: []string{"169.254.170.2/32"}},
		"a subnet that only a binding tells of": {
			bound: []string{"10.0.0.9/28"}, want: []string{"10.0.0.0/28 10.0.0.1 1 12"},
		},
		"the bridge knows the gateway": {
			bridge: []string{"10.0.0.14/28"}, bound: []string{"10.0.0.1/28", "10.0.0.2/28"},
			want: []string{"10.0.0.0/28 10.0.0.14 2 11"},
		},
		"an address of unknown subnet counts where it lies": {
			bridge: []string{"169.254.172.1/22"}, bound: []string{"169.254.173.9/32"},
			want: []string{"169.254.172.0/22 169.254.172.1 1 1020"},
		},
		"two subnets in order, one of IPv6": {
			bound: []string{"10.9.0.2/30", "10.0.0.2/30", "fd00:ec2::172:2/112"},
			want: []string{
				"10.0.0.0/30 10.0.0.1 1 0", "10.9.0.0/30 10.9.0.1 1 0",
				"fd00:ec2::172:0/112 fd00:ec2::172:1 1 65533",
			},
		},
		"a whole network of IPv6": {
			bound: []string{"fd00::2/64"}, want: []string{"fd00::/64 fd00::1 1 18446744073709551614"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newServer(0)
			var state admin.State
			for _, p := range test.bridge {
				state.Bridge = append(state.Bridge, netip.MustParsePrefix(p))
			}
			for _, p := range test.bound {
				state.Bindings = append(state.Bindings, &ecs.Binding{Addrs: []netip.Prefix{netip.MustParsePrefix(p)}})
			}
			server.State = func() admin.State { return state }
			var got []string
			for _, p := range status(t, server).Pools {
				got = append(got, fmt.Sprint(p.Subnet, " ", p.Gateway, " ", p.Used, " ", p.Free))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestStatusOfAnUnreadableFile(t *testing.T) {
	t.Parallel()
	server := newServer(3)
	state := server.State()
	state.Bindings, state.BindingsErr = nil, errors.New("damaged")
	server.State = func() admin.State { return state }
	got := status(t, server)
	if got.BindingsKnown || len(got.Tasks) != 0 {
		t.Errorf("bindings known: %v, with %d tasks", got.BindingsKnown, len(got.Tasks))
	}
}

// status asks for /status.json and accepts no field that a Status has not.
func status(t *testing.T, server *admin.Server) (s admin.Status) {
	t.Helper()
	w := get(t, server, "/status.json")
	if kind := w.Header().Get("Content-Type"); w.Code != 200 || kind != "application/json" {
		t.Fatalf("status %d, type %q", w.Code, kind)
	}
	d := json.NewDecoder(w.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}
