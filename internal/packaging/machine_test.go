package packaging

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// A machine is a Debian machine that runs systemd, with this machine's files as they are
// and a network of its own. What happens on it changes nothing here.
type machine struct {
	pid int // of its first process
}

// newMachine boots a machine.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a machine")
	}
	testnet.Need(t)
	group := controlGroup(t)
	var log bytes.Buffer
	init := exec.Command("bash", "testdata/machine.sh", t.TempDir(), group)
	init.Stdout, init.Stderr = &log, &log
	init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if err := init.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = init.Process.Kill() // and with it all that runs on the machine
		_ = init.Wait()
		removeGroup(t, group)
		if t.Failed() {
			t.Logf("the machine said:\n%s", &log)
		}
	})
	m := &machine{pid: init.Process.Pid}
	testnet.Await(t, "the machine to boot", func() error {
		state, err := m.run("systemctl", "is-system-running", "--wait")
		if state != "running" {
			return fmt.Errorf("%w: %s", err, state)
		}
		return nil
	})
	m.must(t, "ip", "link", "set", "lo", "up")
	return m
}

// controlGroup makes an empty control group below this process's own.
func controlGroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var at, below string
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - cgroup2 ") {
			at = strings.Fields(line)[4]
		}
	}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			below = strings.TrimSpace(path)
		}
	}
	if at == "" {
		t.Fatal("control groups of version 2 are not mounted: mount -t cgroup2 cgroup2 DIRECTORY")
	}
	group, err := os.MkdirTemp(filepath.Join(at, below), "taskmeta-machine-")
	if err != nil {
		t.Fatal(err)
	}
	return group
}

// removeGroup removes a control group, and those below it, in which nothing runs.
func removeGroup(t *testing.T, group string) {
	var all []string
	err := filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, path := range slices.Backward(all) {
		testnet.Await(t, "the control group to be empty", func() error { return unix.Rmdir(path) })
	}
}

// run runs a command on the machine and returns what it printed.
func (m *machine) run(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", strconv.Itoa(m.pid), "--all", "--root", "--wd", "--"}, words...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// must is run for what cannot fail.
func (m *machine) must(t *testing.T, words ...string) string {
	t.Helper()
	out, err := m.run(words...)
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(words, " "), err, out)
	}
	return out
}

// path is where a file of the machine is found from here.
func (m *machine) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.pid), "root", name)
}

// put copies a file of this machine to the other.
func (m *machine) put(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(m.path(to)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path(to), content, mode); err != nil {
		t.Fatal(err)
	}
}
