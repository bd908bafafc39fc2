package attack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
)

// metric is the value of one of the resolver's.
func (w *world) metric(name string) (string, error) {
	status, body, err := w.resolver.Admin(context.Background(), "/metrics")
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
	testnet.Await(t, name, func() error {
		got, err := w.metric(name)
		if err == nil && got != want {
			err = fmt.Errorf("it is %s; want %s", got, want)
		}
		return err
	})
}

// status is what `ecs-resolver status` prints; its error is the exit.
func (w *world) status() (string, error) {
	return w.host.Output(exec.Command(filepath.Join(bin, "ecs-resolver"), "status", "--netns", "host", "--db", w.db, "--docker-host", docker.Host, "--cni-path", bin))
}

// alarmed checks that operators are told of a port everywhere.
func (w *world) alarmed(t testing.TB, port string) {
	t.Helper()
	w.awaitMetric(t, "taskmeta_guard_unknown_ports", "1")
	if log := w.resolver.Log(); !strings.Contains(log, "an unknown port on the bridge") || !strings.Contains(log, fmt.Sprintf(`"port":%q`, port)) {
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

	forged := ecs.Attachment{Network: "ecs-task", Container: "forged", IfName: "eth0"}
	since := strconv.FormatInt(int64(bootclock.Now()), 10)
	for what, port := range map[string]struct{ name, alias string }{
		"a port that says nothing of itself":           {"stranger", ""},
		"a port that says that it is the victim's":     {"impostor", "taskmeta ecs-task " + w.victim.container + " eth0 " + since + " strict"},
		"a port that is named after a task never seen": {link.HostName(forged), "taskmeta ecs-task forged eth0 " + since + " strict"},
	} {
		sh(t, w.host, "ip link add %s type veth peer name other && ip link set %[1]s alias '%s' && ip link set %[1]s master ecs-bridge up", port.name, port.alias)
		t.Log(what)
		w.alarmed(t, port.name)
		sh(t, w.host, "ip link del %s", port.name)
		w.awaitMetric(t, "taskmeta_guard_unknown_ports", "0")
	}
}

// TestAFlushIsMended takes all rules away, and lets the attacks that nothing else stops try
// again once the resolver has put them back.
func TestAFlushIsMended(t *testing.T) {
	t.Parallel()
	for name, k := range map[string]kind{"strict": strict, "source": source} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, k)
			// Chains stand in the order in which they were made.
			rules := func() string {
				lines := strings.Split(sh(t, w.host, "nft --stateless list ruleset"), "\n")
				slices.Sort(lines)
				return strings.Join(lines, "\n")
			}
			before := rules()
			sh(t, w.host, "nft flush ruleset")
			w.awaitMetric(t, "taskmeta_guard_repairs_total", "1")
			if diff := cmp.Diff(before, rules()); diff != "" {
				t.Errorf("after the repair (-before +after):\n%s", diff)
			}
			if log := w.resolver.Log(); !strings.Contains(log, "the endpoint was made whole again") || !strings.Contains(log, "ports were made whole again") {
				t.Error("the log does not tell of the repair")
			}
			w.whole(t)
			// The ports alone, of which no link and no table tells.
			sh(t, w.host, "nft delete table netdev ecs_guard")
			w.awaitMetric(t, "taskmeta_guard_repairs_total", "2")
			if diff := cmp.Diff(before, rules()); diff != "" {
				t.Errorf("after the second repair (-before +after):\n%s", diff)
			}
			w.whole(t)
			for name, a := range all() {
				if a.flushedLets != "" && (k.guard == "strict" || a.sourceLets == "") {
					t.Run(name, func(t *testing.T) { w.mustFail(t, a) })
				}
			}
			if _, err := w.cni("ecs-bridge", "CHECK", w.victim.container, w.victim.netns, w.checkConf(w.victim)); err != nil {
				t.Error(err)
			}
		})
	}
}
