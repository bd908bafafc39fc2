package testnet

import (
	"os"
	"testing"
	"time"
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

// Await tries until fn has no complaint, and gives up after a minute.
func Await(t testing.TB, what string, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
