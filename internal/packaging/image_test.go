package packaging

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// The image, built by a daemon and loaded and run as the quick start has it, attaches and
// answers a container that has nothing but its label.
func TestImageServes(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the image")
	}
	ns := testnet.T(t)
	docker := testnet.Docker(t, ns)
	must := func(args ...string) string {
		t.Helper()
		out, err := docker.CLI(args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	files, err := testnet.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	docker.Image(t, "busybox", files)
	dir := t.TempDir()
	if err := makes("image", "DIST="+dir, "DOCKER_HOST="+docker.Host); err != nil {
		t.Fatal(err)
	}
	// What is loaded is the file: the daemon forgets what it has built.
	must("rmi", must("images", "--quiet", "taskmeta"))
	loaded := must("load", "--input", only(t, dir, "ecs-resolver.tar"))
	name, ok := strings.CutPrefix(loaded, "Loaded image: ")
	if !ok {
		t.Fatalf("docker load says %q", loaded)
	}
	state := filepath.Join(t.TempDir(), "taskmeta")
	run := quickStart(t, map[string]string{
		"/var/run/docker.sock:/var/run/docker.sock":       strings.TrimPrefix(docker.Host, "unix://") + ":/var/run/docker.sock",
		"/run/taskmeta:/run/taskmeta":                     state + ":/run/taskmeta",
		"--restart always ":                               "",
		"$(docker image ls --quiet taskmeta | head -n 1)": name,
	})
	must(run...)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := docker.CLI("logs", "ecs-resolver")
			t.Logf("the resolver logged (standard output): %s", out)
		}
	})
	must("run", "--detach", "--name", "web", "--network", "none", "--label", "com.amazonaws.ecs.task-arn="+arn, "busybox", "sleep", "1000")
	testnet.Await(t, "the endpoint to answer", func() error {
		out, err := docker.CLI("exec", "web", "wget", "-qO-", "http://169.254.170.2/v2/metadata")
		if err != nil {
			return err
		}
		var task struct{ TaskARN string }
		if err := json.Unmarshal([]byte(out), &task); err != nil || task.TaskARN != arn {
			return fmt.Errorf("the answer is %s", out)
		}
		return nil
	})
	if out := must("exec", "ecs-resolver", "ecs-resolver", "status"); strings.Contains(out, "WRONG") {
		t.Errorf("status says\n%s", out)
	}
	// It ends by itself when it is told to, and not by force.
	must("stop", "--time", "20", "ecs-resolver")
	if code := must("inspect", "--format", "{{.State.ExitCode}}", "ecs-resolver"); code != "0" {
		t.Errorf("the resolver ended with exit code %s", code)
	}
}

// quickStart is the command of docs/quickstart.md that runs the image, with other places.
func quickStart(t *testing.T, replace map[string]string) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/quickstart.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "docker run --detach --name ecs-resolver")
	line, _, ok := strings.Cut(strings.ReplaceAll(rest, "\\\n", ""), "\n")
	if !ok {
		t.Fatal("docs/quickstart.md does not run the image")
	}
	for from, to := range replace {
		if !strings.Contains(line, from) {
			t.Fatalf("docs/quickstart.md runs the image without %q", from)
		}
		line = strings.Replace(line, from, to, 1)
	}
	return append([]string{"run", "--detach", "--name", "ecs-resolver"}, strings.Fields(line)...)
}
