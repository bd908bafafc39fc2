package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// command runs one of ecs-resolver's commands on the host.
func (h *host) command(words ...string) (string, error) {
	cmd := exec.Command(filepath.Join(bin, "ecs-resolver"), words...)
	cmd.Env = append(os.Environ(), "IPAM_DB_PATH="+h.db(), "DOCKER_HOST="+h.docker.Host)
	return h.ns.Output(cmd)
}

// mustRun runs a command that has to succeed and to print what is wanted.
func (h *host) mustRun(t *testing.T, want string, words ...string) string {
	t.Helper()
	out, err := h.command(words...)
	if err != nil || !strings.Contains(out, want) {
		t.Errorf("ecs-resolver %s: %v: %s; want %q", strings.Join(words, " "), err, out, want)
	}
	return out
}

func TestAttachedByCommand(t *testing.T) {
	h := newHost(t)
	h.serve(t)
	web := h.task(t, "web")
	app := web.member(t, "app")
	h.docker.Run(t, "--name", "hosted", "--network", "host", image, "/probe", "wait")

	address := strings.TrimSpace(h.mustRun(t, "169.254.172.", "attach", "web-app"))
	h.mustRun(t, "attached already", "attach", "web-pause")
	var got taskReply
	h.ask(t, app, "GET", "/v2/metadata").decode(t, &got)
	if got.TaskARN != web.arn || len(got.Containers) != 2 {
		t.Errorf("the task is told %+v", got)
	}
	h.mustRun(t, "web-pause", "bindings")
	h.mustRun(t, web.arn, "bindings", "show", address)
	var rows []struct{ Container string }
	if err := json.Unmarshal([]byte(h.mustRun(t, "", "bindings", "--json")), &rows); err != nil || len(rows) != 1 || rows[0].Container != web.pause {
		t.Errorf("bindings --json: %v, %+v", err, rows)
	}
	h.mustRun(t, "ok", "status")
	for _, bad := range []struct{ container, says string }{
		{"hosted", "host's network"}, {"nobody", "no such container"},
	} {
		if out, err := h.command("attach", bad.container); err == nil || !strings.Contains(strings.ToLower(out), bad.says) {
			t.Errorf("attach %s: %v: %s; want an error with %q", bad.container, err, out, bad.says)
		}
	}
	h.mustRun(t, address+" is free", "detach", "web-app")
	h.mustRun(t, "nothing to do", "detach", "web-app")
}

// One label is all: the container is attached at its start and detached at its end.
func TestAttachedByItsLabel(t *testing.T) {
	h := newHost(t)
	const arn = "arn:aws:ecs:us-west-2:123456789012:task/default/lone"
	early := h.docker.Run(t, "--network", "none", "--label", "com.amazonaws.ecs.task-arn="+arn+"0", image, "/probe", "wait")
	h.serve(t, "--auto-attach")
	late := h.docker.Run(t, "--network", "none", "--label", "com.amazonaws.ecs.task-arn="+arn+"1", image, "/probe", "wait")
	for i, container := range []string{early, late} {
		testnet.Await(t, "the endpoint to answer", func() error {
			r, err := h.tryAsk(container, "GET", "/v2/metadata")
			if err != nil {
				return err
			}
			var got taskReply
			r.decode(t, &got)
			if want := fmt.Sprint(arn, i); got.TaskARN != want {
				return fmt.Errorf("the task is told of %s; want %s", got.TaskARN, want)
			}
			return nil
		})
	}
	if _, err := h.docker.CLI("rm", "--force", late); err != nil {
		t.Fatal(err)
	}
	testnet.Await(t, "the ended container's address to be free", func() error {
		if out := h.mustRun(t, "", "bindings", "--json"); strings.Contains(out, late) {
			return fmt.Errorf("still bound: %s", out)
		}
		return nil
	})
}

func TestOperatorsAreTold(t *testing.T) {
	h := newHost(t)
	h.serve(t)
	h.task(t, "web").attach(t)
	for path, want := range map[string]string{
		"/":            "169.254.172.2",
		"/status.json": "169.254.172.2",
		"/metrics":     "taskmeta_bindings 1",
		"/readyz":      `"docker":"ok"`,
	} {
		if status, body := h.admin(t, path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d without %q", path, status, want)
		}
	}
}
