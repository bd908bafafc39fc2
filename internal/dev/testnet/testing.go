package testnet

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need ends a test that cannot run without root: as skipped under -short, which is what
// a developer's quick check uses, and as failed otherwise.
func Need(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if testing.Short() {
		t.Skip("needs root, to make network namespaces")
	}
	t.Fatal("needs root, to make network namespaces (run with -short to skip)")
}

// T makes a namespace for a test, which closes it at its end.
func T(t testing.TB) *Namespace {
	t.Helper()
	Need(t)
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// Sh runs a line of the shell in the namespace for a test, and returns what it writes. The
// line must succeed.
func (n *Namespace) Sh(t testing.TB, line string) string {
	t.Helper()
	out, err := n.Output(exec.Command("sh", "-ec", line))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// Soak returns full when TASKMETA_SOAK is set, and few otherwise: the number of rounds
// of a storm.
func Soak(few, full int) int {
	if os.Getenv("TASKMETA_SOAK") != "" {
		return full
	}
	return few
}

// Docker starts a private Docker daemon in the namespace for a test, and takes it and
// its containers away at the test's end.
func Docker(t testing.TB, n *Namespace) *Daemon {
	t.Helper()
	Need(t)
	d, err := StartDocker(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
