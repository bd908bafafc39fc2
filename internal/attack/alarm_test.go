package attack

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// metric is the value of one of the resolver's.
func (w *world) metric(name string) (string, error) {
	status, body, err := ask(w.host, netip.Addr{}, "http://127.0.0.1:51680/metrics", 5*time.Second)
	if err != nil || status != http.StatusOK {
		return "", fmt.Errorf("/metrics: %d %w", status, err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("/metrics has no %s", name)
}

func (w *world) awaitMetric(t testing.TB, name, want string) {
	t.Helper()
	await(t, name, func() error {
		got, err := w.metric(name)
		if err == nil && got != want {
			err = fmt.Errorf("it is %s; want %s", got, want)
		}
		return err
	})
}

// status is what `ecs-resolver status` prints; its error is the exit.
func (w *world) status() (string, error) {
	cmd := exec.Command(filepath.Join(bin, "ecs-resolver"), "status", "--db", w.db, "--docker-host", docker.Host, "--cni-path", bin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := w.host.Run(cmd)
	return out.String(), err
}

// alarmed checks that operators are told of a port everywhere.
func (w *world) alarmed(t testing.TB, port string) {
	t.Helper()
	w.awaitMetric(t, "taskmeta_guard_unknown_ports", "1")
	if log := w.logged(t); !strings.Contains(log, "an unknown port on the bridge") || !strings.Contains(log, fmt.Sprintf(`"port":%q`, port)) {
		t.Errorf("the log does not tell of port %s", port)
	}
	out, err := w.status()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "the port "+port) {
		t.Errorf("status ends with %v and says\n%s\nwant exit code 1 and port %s", err, out, port)
	}
}

func TestOperatorsAreAlarmed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, strict)
	if out, err := w.status(); err != nil {
		t.Errorf("status, with all in place: %v\n%s", err, out)
	}
	w.awaitMetric(t, "taskmeta_guard_unknown_ports", "0")
	w.awaitMetric(t, "taskmeta_guard_repairs_total", "0")

	sh(t, w.host, "ip link add stranger type veth peer name other && ip link set stranger master ecs-bridge up")
	w.alarmed(t, "stranger")
	sh(t, w.host, "ip link del stranger")
	w.awaitMetric(t, "taskmeta_guard_unknown_ports", "0")

	before := sh(t, w.host, "nft --stateless list table inet ecs_guard")
	sh(t, w.host, "nft flush ruleset")
	w.awaitMetric(t, "taskmeta_guard_repairs_total", "1")
	if after := sh(t, w.host, "nft --stateless list table inet ecs_guard"); after != before {
		t.Errorf("after the repair:\n%s\nbefore:\n%s", after, before)
	}
	if !strings.Contains(w.logged(t), "the endpoint was made whole again") {
		t.Error("the log does not tell of the repair")
	}
	w.whole(t)
}
