package testnet

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// system is where what tree.sh has made of that name is kept.
func system(name string) string {
	return filepath.Join(cmp.Or(os.Getenv("TASKMETA_DEV"), "/var/lib/taskmeta-dev"), name)
}

//go:embed engine.sh
var enterTree string

// An engine is where the programs of Docker come from: this machine, or a Debian tree.
type engine struct {
	tree string   // "" for this machine
	mnt  *os.File // the tree's mount namespace, once dockerd has been started in it
}

// newEngine is the engine that TASKMETA_ENGINE names.
func newEngine() (engine, error) {
	switch name := os.Getenv("TASKMETA_ENGINE"); name {
	case "", "machine":
		return engine{}, nil
	case "debian14":
		tree := filepath.Join(system(name), "root")
		if _, err := os.Stat(tree); err != nil {
			return engine{}, fmt.Errorf("TASKMETA_ENGINE=%s: %w: run make engines", name, err)
		}
		if dir := os.TempDir() + "/"; !strings.HasPrefix(dir, "/tmp/") && !strings.HasPrefix(dir, "/var/tmp/") {
			return engine{}, fmt.Errorf("TMPDIR=%s: want a folder below /tmp or /var/tmp, which the tree has too", dir)
		}
		return engine{tree: tree}, nil
	default:
		return engine{}, fmt.Errorf("TASKMETA_ENGINE=%s: want machine or debian14", name)
	}
}

// command is one of the engine's programs. The first command makes the tree's mount
// namespace, and others enter it once keep has been called: containers that outlive their
// daemon are only found again by one that sees the same mounts.
func (e *engine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	switch {
	case e.tree == "":
		return exec.CommandContext(ctx, name, args...)
	case e.mnt == nil:
		words := []string{"--mount", "--propagation", "unchanged", "sh", "-ec", enterTree, e.tree, name}
		return exec.CommandContext(ctx, "unshare", append(words, args...)...)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--mount=/proc/self/fd/3", name}, args...)...)
	cmd.ExtraFiles = []*os.File{e.mnt}
	return cmd
}

// keep keeps the mount namespace of a dockerd that answers, for later commands.
func (e *engine) keep(dockerd *os.Process) (err error) {
	if e.tree != "" && e.mnt == nil {
		e.mnt, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", dockerd.Pid))
	}
	return err
}

func (e *engine) close() error {
	if e.mnt == nil {
		return nil
	}
	return e.mnt.Close()
}
