// Package pluginexec runs the program of a CNI plugin, which ends with whoever runs it. ecs-ipam
// runs none, and so does not link it.
package pluginexec

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Run runs the program of a plugin, made by [exec.CommandContext] of the same context, and
// returns what it writes to standard output. Should this process be killed, so is the plugin:
// it must not go on with what whoever comes next is about to undo. An error that the plugin
// answered with is a [types.Error]; that of one that ended without an answer is an
// [exec.ExitError].
func Run(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	runtime.LockOSThread() // the kernel kills the child when the thread that started it ends
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second // for what the plugin may have started, and what holds its output
	out, err := cmd.Output()
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return out, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	var answer types.Error
	if json.Unmarshal(out, &answer) == nil && answer.Code != 0 {
		return nil, &answer
	}
	return out, err
}
