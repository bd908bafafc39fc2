package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// programs runs plugins for libcni as its own executor does, but each is killed should this
// process die: whoever takes the lock next would else undo an ADD that still goes on.
type programs struct {
	version.PluginDecoder
	stderr io.Writer
}

// FindInPath is what libcni asks for the path of a plugin.
func (p *programs) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin runs a plugin and returns what it answers. An error that the plugin reports is
// a [types.Error]; that of one that ended without an answer has no code.
func (p *programs) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	runtime.LockOSThread() // the kernel kills the child when the thread that started it ends
	defer runtime.UnlockOSThread()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = environ
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, io.MultiWriter(p.stderr, &stderr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second // for what the plugin may have started, and what holds its output
	err := cmd.Run()
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", path, context.Cause(ctx))
	}
	var answer types.Error
	if json.Unmarshal(stdout.Bytes(), &answer) == nil && answer.Code != 0 {
		return nil, &answer
	}
	return nil, fmt.Errorf("%s ended without an answer (%w): %s", path, err, bytes.TrimSpace(stderr.Bytes()))
}
