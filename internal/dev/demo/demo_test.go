package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// A stage is where a demo is shown: the programs, and all that it may leave.
type stage struct{ dir string }

func newStage(t *testing.T) stage {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Docker daemon")
	}
	testnet.Need(t)
	s := stage{t.TempDir()}
	if err := testnet.Build(s.dir, "taskmeta/internal/dev/demo"); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(s.dir, "bin") // where the demo looks for what `make build` has built
	if err := testnet.Build(bin, "taskmeta/plugins/ecs-ipam", "taskmeta/plugins/ecs-bridge", "taskmeta/resolver"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.tmp(), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s stage) tmp() string { return filepath.Join(s.dir, "tmp") }

func (s stage) demo(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.dir, "demo"), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "TMPDIR="+s.tmp())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// left is what a demo has left: files, and processes that name its directory.
func (s stage) left() error {
	var found []string
	entries, err := os.ReadDir(s.tmp())
	if err != nil {
		return err
	}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, path := range processes {
		line, _ := os.ReadFile(path) // one that has ended is not left
		if bytes.Contains(line, []byte(s.dir)) {
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("left: %s", strings.Join(found, ", "))
	}
	return nil
}

func TestDemo(t *testing.T) {
	s := newStage(t)
	t.Run("to its end", s.plays)
	t.Run("kept", s.isKept)
	t.Run("interrupted", s.isInterrupted)
}

func (s stage) plays(t *testing.T) {
	out, err := s.demo().CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		`"TaskARN": "arn:aws:ecs:us-west-2:123456789012:task/shop/web"`,
		`"TaskARN": "arn:aws:ecs:us-west-2:123456789012:task/shop/worker"`,
		"404 Not Found", `"preread"`, "2 of 1021 addresses", "tool is detached", "no address is held",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not show %q", want)
		}
	}
	if strings.Contains(string(out), "WRONG") {
		t.Error("status finds something wrong")
	}
	if err := s.left(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// The host that is kept says how to stop it, and that takes all of it away.
func (s stage) isKept(t *testing.T) {
	out, err := s.demo("-keep").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, rest, ok := strings.Cut(string(out), "To stop it and take it all away:\n  kill ")
	pid := strings.TrimSpace(rest)
	if !ok || s.left() == nil {
		t.Fatalf("it is not kept, or does not say how to stop it: %s", out)
	}
	if out, err := exec.Command("kill", pid).CombinedOutput(); err != nil {
		t.Fatalf("kill %s: %v: %s", pid, err, out)
	}
	testnet.Await(t, "all of it to be gone", s.left)
}

// An interrupt, as from a terminal, ends it in the middle.
func (s stage) isInterrupted(t *testing.T) {
	cmd := s.demo()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "3. ") {
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, stdout); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); !errors.As(err, new(*exec.ExitError)) {
		t.Errorf("it ends with %v; want an exit code", err)
	}
	if err := s.left(); err != nil {
		t.Error(err)
	}
}
