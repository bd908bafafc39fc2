package metadata

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/ecs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares JSON, laid out to be read, with a file of testdata/v2.
func golden(t *testing.T, name string, body []byte) {
	t.Helper()
	var got bytes.Buffer
	if err := json.Indent(&got, body, "", "  "); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	got.WriteByte('\n')
	path := filepath.Join("..", "..", "testdata", "v2", name)
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (- want, + got; -update rewrites it):\n%s", name, diff)
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldens(t *testing.T) {
	t.Parallel()
	task := webTask()
	one := 1
	broken := ecs.Container{
		ID: appID, Name: "broken", Desired: ecs.StatusStopped, Known: ecs.StatusStopped, ExitCode: &one, CPU: 1,
		Created: time.Date(2026, 1, 1, 1, 0, 0, 500_000_000, time.FixedZone("", 3600)),
		Addrs:   []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("2001:db8::2")},
		Health:  &ecs.Health{Status: "UNHEALTHY", ExitCode: 7},
	}
	tagged, err := newRendering(task, "us-west-2a", map[string]string{"rack": "12"}).withTags()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "task.json", marshal(t, newTaskReply(task, "us-west-2a")))
	golden(t, "task-with-tags.json", tagged)
	golden(t, "task-nothing-known.json", marshal(t, newTaskReply(&ecs.Task{Containers: make([]ecs.Container, 1)}, "")))
	golden(t, "container-broken.json", marshal(t, newContainerReply(&broken)))
	golden(t, "stats.json", statsBody(task.Containers, newWorld().stats))

	var errors [][]byte
	for _, f := range refusals {
		errors = append(errors, f.body())
	}
	golden(t, "errors.json", append(append([]byte("["), bytes.Join(errors, []byte(","))...), ']'))
}

// TestAgentsAnswers holds our answers against what the ECS agent's handlers gave for the
// same task, byte for byte but for the agent's random order of containers.
func TestAgentsAnswers(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "v2", name))
		if err != nil {
			t.Fatal(err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, b); err != nil {
			t.Fatal(err)
		}
		return compact.Bytes()
	}

	agents := read("ecs-agent-task.json")
	var list struct{ Containers []json.RawMessage }
	if err := json.Unmarshal(agents, &list); err != nil {
		t.Fatal(err)
	}
	theirs := bytes.Join([][]byte{list.Containers[0], list.Containers[1], list.Containers[2]}, []byte(","))
	inOrder := bytes.Join([][]byte{list.Containers[1], list.Containers[2], list.Containers[0]}, []byte(","))
	want := bytes.Replace(agents, theirs, inOrder, 1)

	if diff := cmp.Diff(string(want), string(marshal(t, newTaskReply(webTask(), "us-west-2a")))); diff != "" {
		t.Errorf("task (- agent, + ours):\n%s", diff)
	}
	if diff := cmp.Diff(string(read("ecs-agent-container.json")), string(marshal(t, newContainerReply(&webTask().Containers[1])))); diff != "" {
		t.Errorf("container (- agent, + ours):\n%s", diff)
	}
}

// TestNumbers decodes limits as clients do, which take no fraction and no sign.
func TestNumbers(t *testing.T) {
	t.Parallel()
	task := webTask()
	task.CPU, task.Memory = 2, 1<<40
	task.Containers[0].CPU, task.Containers[0].Memory = 1<<63, 1<<63
	var got struct {
		Limits     struct{ CPU, Memory uint64 }
		Containers []struct{ Limits struct{ CPU, Memory uint64 } }
	}
	if err := json.Unmarshal(marshal(t, newTaskReply(task, "")), &got); err != nil {
		t.Fatal(err)
	}
	if got.Limits.CPU != 2 || got.Limits.Memory != 1<<40 || got.Containers[0].Limits.CPU != 1<<63 {
		t.Errorf("decoded %+v", got)
	}
}

func TestTextIsEscapedAsTheAgentDoes(t *testing.T) {
	t.Parallel()
	body := marshal(t, newContainerReply(&ecs.Container{Name: "<&>\u2028\x00"}))
	if want := `"Name":"\u003c\u0026\u003e\u2028\u0000"`; !strings.Contains(string(body), want) {
		t.Errorf("no %s in %s", want, body)
	}
}
