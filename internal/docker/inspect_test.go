package docker

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"taskmeta/internal/ecs"
)

const (
	pauseID = "d28fdd35f41b9b0546fbda1e2f07d32bf87f5dc5839a60fa9ed282335eb4ea05"
	imageID = "sha256:c0344c91f3b8a8b0324e3bba0c065bb0cf0805adb4b0ef5b158fd41939d7a3ff"
)

// The files are what Docker 20.10 says of a task's containers.
func TestInspected(t *testing.T) {
	t.Parallel()
	at := func(clock string) time.Time { return onThatDay(t, clock) }
	three := 3
	tests := map[string]struct {
		pid  int
		want ecs.Container
	}{
		"pause.json": {4082, ecs.Container{
			ID: pauseID, Name: "web-pause", DockerName: "web-pause", Image: "taskmeta-test", ImageID: imageID,
			Labels: map[string]string{ecs.LabelTaskARN: arn, ecs.LabelFamily: "web"},
			Known:  ecs.StatusRunning, Created: at("05:15:43.719089419"), Started: at("05:15:43.955214369"),
		}},
		"paused.json": {4194, ecs.Container{
			ID: "f7aaefc9fd232b3120f2f4e3cacc7e97bd03e42665d3d845479b4ec81b9e49d9", Name: "application", DockerName: "app",
			Image: "exposing", ImageID: "sha256:6ec0f8ca14177ee5d6b638f0a0d4bc10e221fc206a581895eea8550e0e258fa9",
			Ports: []ecs.Port{{Number: 53, Protocol: "tcp"}, {Number: 53, Protocol: "udp"}, {Number: 8080, Protocol: "tcp"}},
			Labels: map[string]string{
				ecs.LabelContainerName: "application", ecs.LabelTaskARN: arn, ecs.LabelFamily: "web",
				"com.example.odd": "a \"b\" <c> é\n",
			},
			Known: ecs.StatusRunning, CPU: 256, Memory: 64, Joins: pauseID,
			Created: at("05:15:44.10389615"), Started: at("05:15:44.235966457"),
			Health: &ecs.Health{Status: "UNHEALTHY", Since: at("05:15:44.954311782"), Output: "fine\n"}, // as paused ones are
			Volumes: []ecs.Volume{
				{Source: "/srv/data", Destination: "/data"},
				{
					DockerName:  "675dbcd4529296c4c0c31fdda8abc17ee644f497a88ca6f532e4269ced2c5896",
					Source:      "/var/lib/docker/volumes/675dbcd4529296c4c0c31fdda8abc17ee644f497a88ca6f532e4269ced2c5896/_data",
					Destination: "/var/cache",
				},
			},
		}},
		"exited.json": {0, ecs.Container{
			ID: "2ff51c0672e05c56a69f8fc7740f98f21570ce1b23ed8d85cad1595ad0015b8d", Name: "init", DockerName: "init",
			Image: "taskmeta-test", ImageID: imageID, Known: ecs.StatusStopped, ExitCode: &three, Joins: pauseID,
			Created: at("05:15:44.266501423"), Started: at("05:15:44.39024299"), Finished: at("05:15:44.392528642"),
		}},
		"created.json": {0, ecs.Container{
			ID: "88258b6c0e80b1d408f36e4554ae2d86d5ef8ed3f053e77d00cc41722b7f5ffd", Name: "made", DockerName: "made",
			Image: "taskmeta-test", ImageID: imageID, Known: ecs.StatusCreated, Joins: pauseID, Created: at("05:15:44.61512072"),
		}},
		"unhealthy.json": {4329, ecs.Container{
			ID: "74a5dc9fbaf1399a39b015ff912fceabe2cf9606abd540f42568378ca364b422", Name: "sick", DockerName: "sick",
			Image: "taskmeta-test", ImageID: imageID, Known: ecs.StatusRunning, Joins: pauseID,
			Created: at("05:15:44.428804993"), Started: at("05:15:44.591046146"),
			Health: &ecs.Health{Status: "UNHEALTHY", Since: at("05:15:45.199255989"), ExitCode: 7, Output: "ill\n"},
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkInspected(t, name, test.pid, test.want)
		})
	}
}

func onThatDay(t *testing.T, clock string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339Nano, "2026-11-24T"+clock+"Z")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// checkInspected compares what becomes of a file's inspection with what is wanted.
func checkInspected(t *testing.T, file string, pid int, want ecs.Container) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../testdata/docker", file))
	if err != nil {
		t.Fatal(err)
	}
	var info container.InspectResponse
	if err := json.Unmarshal(text, &info); err != nil {
		t.Fatal(err)
	}
	e, err := inspected(want.ID, &info)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, e.container, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if e.pid != pid || e.arn != want.Labels[ecs.LabelTaskARN] || e.joins != want.Joins {
		t.Errorf("entry %+v, want process %d", e, pid)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	tests := map[container.ContainerState]ecs.Status{
		"created": ecs.StatusCreated,
		"running": ecs.StatusRunning, "paused": ecs.StatusRunning, "restarting": ecs.StatusRunning,
		"exited": ecs.StatusStopped, "dead": ecs.StatusStopped, "removing": ecs.StatusStopped,
		"": ecs.StatusNone, "of another version": ecs.StatusNone,
	}
	for state, want := range tests {
		if got := status(state); got != want {
			t.Errorf("status(%q) = %s, want %s", state, got, want)
		}
	}
}

// Whatever a daemon says of a container, the index takes what it can use or refuses it.
func FuzzInspected(f *testing.F) {
	seeds, err := filepath.Glob("../../testdata/docker/*.json")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, path := range seeds {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"Id":"a","State":{},"Config":{},"HostConfig":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var info container.InspectResponse
		if json.Unmarshal(text, &info) != nil || info.ContainerJSONBase == nil {
			return
		}
		e, err := inspected(info.ID, &info)
		if err != nil {
			return
		}
		task := ecs.NewTask(&ecs.Binding{}, e.id, []*ecs.Container{e.container}, nil)
		if len(task.Containers) != 1 || task.ARN == "" && e.id != "" {
			t.Errorf("task %+v of %s", task, text)
		}
		if c := task.Containers[0]; c.Known == ecs.StatusStopped && c.ExitCode == nil {
			t.Errorf("stopped without an exit code: %s", text)
		}
	})
}
