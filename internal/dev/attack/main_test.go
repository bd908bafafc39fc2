// Package attack tries to be taken for another task, to hear its answers, and to reach what
// a task is not to reach. Each attack is tried against the product and against a plain
// bridge, where it has to succeed: one that fails everywhere tests nothing.
//
// The attacker has every capability in its own network namespace, and sends what it likes.
package attack

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// bin is where the programs are, and docker is the daemon whose containers hold the tasks
// of all hosts. TestMain makes both.
var (
	bin    string
	docker *testnet.Daemon
)

const image = "taskmeta-attack"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run()) // every test here needs a Docker daemon, and skips
	}
	code, err := prepared(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// prepared runs fn while the programs and the daemon are there.
func prepared(fn func() int) (code int, err error) {
	if bin, err = os.MkdirTemp("", "taskmeta-attack-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(bin)
	if err := os.Chmod(bin, 0o755); err != nil { // one test starts the resolver as somebody else
		return 0, err
	}
	if err := testnet.Build(bin, "taskmeta/plugins/ecs-ipam", "taskmeta/plugins/ecs-bridge", "taskmeta/resolver"); err != nil {
		return 0, err
	}
	ns, err := testnet.New()
	if err != nil {
		return 0, err
	}
	defer func() {
		if e := ns.Close(); err == nil {
			err = e
		}
	}()
	if docker, err = testnet.StartDocker(ns); err != nil {
		return 0, err
	}
	defer func() {
		if e := docker.Close(); err == nil {
			err = e
		}
	}()
	if err := docker.ImportBusybox(image, nil); err != nil {
		return 0, err
	}
	return fn(), nil
}

// sh is Sh with a format.
func sh(t testing.TB, ns *testnet.Namespace, line string, args ...any) string {
	t.Helper()
	return ns.Sh(t, fmt.Sprintf(line, args...))
}
