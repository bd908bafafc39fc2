package admin_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"taskmeta/internal/admin"
)

func TestMetricsKeepPrometheusConventions(t *testing.T) {
	t.Parallel()
	server := newServer(3)
	server.Requests.Observe("metadata", 200, time.Millisecond)
	problems, err := promlint.New(get(t, server, "/metrics").Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestMetricsOfAHost(t *testing.T) {
	t.Parallel()
	server := newServer(3)
	server.Checks = append(server.Checks, failing("guard", "the table is gone"))
	state := server.State()
	state.Guard = admin.Guard{Repairs: 4, UnknownPorts: []string{"veth0", "veth1"}}
	server.State = func() admin.State { return state }
	server.Requests.Observe("metadata", 200, time.Millisecond)
	server.Requests.Observe("metadata", 200, 3*time.Second)
	server.Requests.Observe("connection", 429, 0)
	want := `taskmeta_bindings 3
taskmeta_bindings_gone 1
taskmeta_bindings_loads_total 7
taskmeta_build_info{version="v1.2.3"} 1
taskmeta_check_passing{check="bindings"} 1
taskmeta_check_passing{check="docker"} 1
taskmeta_check_passing{check="endpoint"} 1
taskmeta_check_passing{check="guard"} 0
taskmeta_docker_connected 1
taskmeta_docker_containers 9
taskmeta_docker_events_total 27
taskmeta_docker_resyncs_total 2
taskmeta_docker_stats_streams 0
taskmeta_guard_repairs_total 4
taskmeta_guard_uncontained_containers 0
taskmeta_guard_unknown_ports 2
taskmeta_pool_addresses{state="free",subnet="169.254.172.0/22"} 1018
taskmeta_pool_addresses{state="used",subnet="169.254.172.0/22"} 3
taskmeta_requests_total{code="200",endpoint="metadata"} 2
taskmeta_requests_total{code="429",endpoint="connection"} 1
`
	var got strings.Builder
	for line := range strings.Lines(get(t, server, "/metrics").Body.String()) {
		if strings.HasPrefix(line, "taskmeta_") && !strings.HasPrefix(line, "taskmeta_request_duration_seconds_") {
			got.WriteString(line)
		}
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("exported (-want +got):\n%s", diff)
	}
}

func TestMetricsLeaveOutWhatIsNotKnown(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change  func(*admin.State)
		absent  []string
		present []string
	}{
		"the bindings file is unreadable": {
			change:  func(s *admin.State) { s.Bindings, s.BindingsErr = nil, errors.New("damaged") },
			absent:  []string{"taskmeta_bindings ", "taskmeta_bindings_gone ", "taskmeta_pool_addresses{"},
			present: []string{"taskmeta_bindings_loads_total 7", "taskmeta_docker_connected 1"},
		},
		"Docker is away": {
			change:  func(s *admin.State) { s.Docker.Connected = false },
			absent:  []string{"taskmeta_bindings_gone "},
			present: []string{"taskmeta_bindings 3", "taskmeta_docker_connected 0"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newServer(3)
			state := server.State()
			test.change(&state)
			server.State = func() admin.State { return state }
			text := get(t, server, "/metrics").Body.String()
			for _, name := range test.absent {
				if strings.Contains(text, "\n"+name) {
					t.Errorf("%s is exported", name)
				}
			}
			for _, line := range test.present {
				if !strings.Contains(text, "\n"+line+"\n") {
					t.Errorf("%s is missing", line)
				}
			}
		})
	}
}
