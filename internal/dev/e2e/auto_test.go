package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// attachAll starts ecs-resolver, which attaches every container with a task's label, and
// waits until it is ready.
func (h *host) attachAll(t *testing.T, args ...string) {
	t.Helper()
	h.start(t, "/readyz", append([]string{"serve", "--auto-attach", "--log-format", "text"}, args...)...)
}

func arnOf(name string) string { return "arn:aws:ecs:us-west-2:123456789012:task/default/" + name }

// label starts a container with the label of a task.
func (h *host) label(t *testing.T, name string, more ...string) (id string) {
	t.Helper()
	args := append([]string{"--name", name, "--label", "com.amazonaws.ecs.task-arn=" + arnOf(name)}, more...)
	return h.docker.Run(t, append(args, image, "/probe", "wait")...)
}

// awaitTask waits until a container is told of the task of that name.
func (h *host) awaitTask(t *testing.T, container, task string) {
	t.Helper()
	testnet.Await(t, container+" to be told its task", func() error {
		r, err := h.tryAsk(container, "GET", "/v2/metadata")
		if err != nil {
			return err
		}
		var got struct{ TaskARN string }
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || got.TaskARN != arnOf(task) {
			return fmt.Errorf("it is told %d %s", r.StatusCode, r.body)
		}
		return nil
	})
}

// holders are the containers that hold an address, by their IDs.
func (h *host) holders(t *testing.T) map[string]string {
	t.Helper()
	var rows []struct {
		Container string
		Addrs     []string
	}
	out := h.mustRun(t, "", "bindings", "--json")
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("bindings --json: %v: %s", err, out)
	}
	held := make(map[string]string)
	for _, r := range rows {
		if _, twice := held[r.Container]; twice || len(r.Addrs) != 1 {
			t.Errorf("%s holds more than one address, or none: %s", r.Container, out)
		}
		held[r.Container] = r.Addrs[0]
	}
	return held
}

func TestAutoAttach(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.attachAll(t)

	web := h.label(t, "web", "--network", "none")
	h.awaitTask(t, "web", "web")
	plain := h.docker.Run(t, "--name", "plain", "--network", "none", image, "/probe", "wait")

	// A container that shares another's namespace belongs to that one.
	h.label(t, "sidecar", "--network", "container:web", "--label", "com.amazonaws.ecs.task-arn="+arnOf("web"))
	h.awaitTask(t, "sidecar", "web")
	testnet.Await(t, "the sidecar to be one of the task's containers", func() error {
		var got taskReply
		h.ask(t, "web", "GET", "/v2/metadata").decode(t, &got)
		if len(got.Containers) != 2 {
			return fmt.Errorf("the task has %d containers", len(got.Containers))
		}
		return nil
	})

	// One with the host's network is told of in the log.
	hosted := h.label(t, "hosted", "--network", "host")
	h.resolver.AwaitLog(t, "level=WARN", "host's network", "hosted", hosted)

	// A restarted container has a new namespace.
	before := h.docker.Pid(t, "web")
	if _, err := h.docker.CLI("rm", "--force", "sidecar"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.docker.CLI("restart", "--time", "0", "web"); err != nil {
		t.Fatal(err)
	}
	if h.docker.Pid(t, "web") == before {
		t.Fatal("docker restart changed nothing")
	}
	h.awaitTask(t, "web", "web")
	if held := h.holders(t); len(held) != 1 || held[web] == "" || held[plain] != "" {
		t.Errorf("the addresses are held by %v; want web alone, %s", held, web)
	}

	// One that ends gives its address back, though Docker keeps it; one that starts again gets one.
	if _, err := h.docker.CLI("stop", "--time", "0", "web"); err != nil {
		t.Fatal(err)
	}
	testnet.Await(t, "the address to be free", func() error {
		if held := h.holders(t); len(held) > 0 {
			return fmt.Errorf("held by %v", held)
		}
		return nil
	})
	if out, err := h.command("attach", "web"); err == nil || !strings.Contains(out, "not running") || !strings.Contains(out, "docker start web") {
		t.Errorf("attach of a stopped container: %v: %s", err, out)
	}
	if _, err := h.docker.CLI("start", "web"); err != nil {
		t.Fatal(err)
	}
	h.awaitTask(t, "web", "web")
}

// What happened while the resolver was away is made good at its start, whether it had
// ended or was killed.
func TestAutoAttachAfterARestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.attachAll(t)
	h.label(t, "stays", "--network", "none")
	gone := h.label(t, "gone", "--network", "none")
	again := h.label(t, "again", "--network", "none")
	for _, name := range []string{"stays", "gone", "again"} {
		h.awaitTask(t, name, name)
	}
	kept := h.holders(t)
	for i, end := range []func(*testnet.Resolver) error{(*testnet.Resolver).Stop, (*testnet.Resolver).Kill} {
		late := fmt.Sprintf("late%d", i)
		if err := end(h.resolver); err != nil {
			t.Error(err)
		}
		if _, err := h.docker.CLI("rm", "--force", gone); err != nil {
			t.Fatal(err)
		}
		if _, err := h.docker.CLI("restart", "--time", "0", again); err != nil {
			t.Fatal(err)
		}
		h.label(t, late, "--network", "none")
		h.attachAll(t)
		for _, name := range []string{"stays", "again", late} {
			h.awaitTask(t, name, name)
		}
		testnet.Await(t, "the address of the one that is gone to be free", func() error {
			if held := h.holders(t); held[gone] != "" {
				return fmt.Errorf("held by %v", held)
			}
			return nil
		})
		gone = late
	}
	if held := h.holders(t); held[h.id(t, "stays")] != kept[h.id(t, "stays")] {
		t.Errorf("the container that stayed had %v and has %v", kept, held)
	}

	// The daemon ends and comes back; its containers run on.
	if err := h.docker.Stop(); err != nil {
		t.Fatal(err)
	}
	h.resolver.AwaitLog(t, "level=WARN", "are attached when the Docker daemon is back")
	if err := h.docker.Start(); err != nil {
		t.Fatal(err)
	}
	h.label(t, "after", "--network", "none")
	h.awaitTask(t, "after", "after")
}

func (h *host) id(t *testing.T, name string) string {
	t.Helper()
	id, err := h.docker.CLI("inspect", "--format", "{{.Id}}", name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// What cannot be attached is tried again, and what has ended before it could be is no error.
func TestAutoAttachTriesAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	plugins := t.TempDir()
	script := "#!/bin/sh\nif [ -e " + plugins + "/broken ] && [ \"$CNI_COMMAND\" = ADD ]; then\n" +
		`echo '{"cniVersion": "1.1.0", "code": 999, "msg": "out of order"}'; exit 1; fi` + "\nexec " + bin + "/ecs-bridge\n"
	if err := os.WriteFile(filepath.Join(plugins, "ecs-bridge"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	h.attachAll(t, "--cni-path", plugins+":"+bin)

	for range 4 { // they end at once
		out, err := h.docker.CLI("run", "--rm", "--network", "none", "--label", "com.amazonaws.ecs.task-arn="+arnOf("short"), image, "/probe")
		if err == nil {
			t.Fatalf("the container that should end at once says %s", out)
		}
	}
	h.label(t, "last", "--network", "none")
	h.awaitTask(t, "last", "last") // the others were seen before it
	testnet.Await(t, "the addresses of the others to be free", func() error {
		if held := h.holders(t); len(held) != 1 {
			return fmt.Errorf("held by %v", held)
		}
		return nil
	})
	if strings.Contains(h.resolver.Log(), "level=ERROR") {
		t.Error("what ends at once is an error in the log")
	}

	broken := filepath.Join(plugins, "broken")
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	id := h.label(t, "web", "--network", "none")
	h.resolver.AwaitLog(t, "level=ERROR", "trying again", id, "out of order")
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	h.awaitTask(t, "web", "web")
}

// One container is attached by hand and by its label at once, and others beside it: all
// end well, and each has one address.
func TestAutoAttachAndByHandAtOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.attachAll(t)
	const rounds = 4
	var all sync.WaitGroup
	for i := range rounds {
		all.Go(func() {
			name := fmt.Sprintf("c%d", i)
			id, err := h.docker.CLI("run", "--detach", "--name", name, "--network", "none",
				"--label", "com.amazonaws.ecs.task-arn="+arnOf(name), image, "/probe", "wait")
			if err != nil {
				t.Error(err)
				return
			}
			var hands sync.WaitGroup
			for range 2 {
				hands.Go(func() {
					if out, err := h.command("attach", id); err != nil {
						t.Errorf("attach %s: %v: %s", name, err, out)
					}
				})
			}
			hands.Wait()
		})
	}
	all.Wait()
	for i := range rounds {
		name := fmt.Sprintf("c%d", i)
		h.awaitTask(t, name, name)
	}
	addrs := make(map[string]bool)
	for _, addr := range h.holders(t) {
		addrs[addr] = true
	}
	if len(addrs) != rounds {
		t.Errorf("%d addresses are held, want %d: %v", len(addrs), rounds, addrs)
	}
}

// Each line of status says that its part is in place, or what is not and what to do.
func TestStatus(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	out, err := h.command("status")
	for _, part := range []string{"bridge", "address", "guard", "listener", "resolver"} {
		line := lineOf(out, part)
		if err == nil || !strings.HasPrefix(line, "WRONG") || !strings.Contains(line, "ecs-resolver serve") {
			t.Errorf("without a resolver, status (%v) says of %s: %q", err, part, line)
		}
	}
	h.serve(t)
	h.mustRun(t, "", "status")
	damaged := filepath.Join(h.dir, "damaged.db")
	if err := os.WriteFile(damaged, []byte("no bindings file"), 0o600); err != nil {
		t.Fatal(err)
	}
	parts := map[string]struct {
		flag string // with which the part is not in place
		do   string // what is to be done then
	}{
		"daemon":             {"--docker-host=unix:///nowhere", "start it"},
		"plugins":            {"--cni-path=/nowhere", "install it"},
		"bindings":           {"--db=" + damaged, "ecs-resolver bindings repair"},
		"bridge":             {"--bridge=other", "ecs-resolver serve"},
		"address":            {"--bridge=other", "ecs-resolver serve"},
		"guard":              {"", ""}, // on the host alone: TestGuardOnTheHost
		"listener":           {"--listen=127.0.0.1:1", "--listen"},
		"resolver":           {"--admin=127.0.0.1:1", "systemctl start ecs-resolver"},
		"attaching":          {"", ""},
		"resolver: docker":   {"", ""},
		"resolver: bindings": {"", ""},
		"resolver: endpoint": {"", ""},
		"containers":         {"", ""},
		"question":           {"--bridge=other", "first see to bridge"},
	}
	all := h.mustRun(t, "", "status")
	for part, p := range parts {
		if part != "resolver" { // which has a line for each of its parts
			if line := lineOf(all, part); !strings.HasPrefix(line, "ok ") {
				t.Errorf("status says of %s: %q", part, line)
			}
		}
		if p.flag == "" {
			continue
		}
		out, err := h.command("status", p.flag)
		if line := lineOf(out, part); err == nil || !strings.HasPrefix(line, "WRONG ") || !strings.Contains(line, p.do) {
			t.Errorf("status %s (%v) says of %s: %q; want what to do: %s", p.flag, err, part, line, p.do)
		}
	}
	var found []struct{ OK bool }
	if err := json.Unmarshal([]byte(h.mustRun(t, "", "status", "--json")), &found); err != nil || len(found) != len(parts)-1 {
		t.Errorf("status --json: %v, %d findings; want %d", err, len(found), len(parts)-1)
	}

	strong := h.task(t, "strong")
	strong.attach(t)
	strong.member(t, "app", "--cap-add", "NET_ADMIN")
	testnet.Await(t, "the container that no guard holds", func() error {
		out, err := h.command("status")
		if line := lineOf(out, "containers"); err == nil || !strings.HasPrefix(line, "WRONG") || !strings.Contains(line, "strong/app can change") {
			return fmt.Errorf("status (%w) says %q", err, line)
		}
		return nil
	})
}

// lineOf is the line of a table whose second column is name.
func lineOf(table, name string) string {
	for line := range strings.Lines(table) {
		if _, rest, ok := strings.Cut(line, " "); ok && strings.HasPrefix(strings.TrimSpace(rest)+" ", name+" ") {
			if name != "resolver" || !strings.Contains(line, "resolver: ") {
				return line
			}
		}
	}
	return ""
}
