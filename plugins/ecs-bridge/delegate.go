package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/ipam"
)

// A delegate is the IPAM plugin: what addresses come from.
type delegate struct {
	name, path string
	request    *cniedge.Request // ours: its configuration is passed on as it is
}

// findIPAM looks for the plugin in the directories of CNI_PATH.
func findIPAM(r *cniedge.Request, name string) (*delegate, error) {
	if !strings.ContainsRune(name, filepath.Separator) {
		for _, dir := range filepath.SplitList(r.Path) {
			path := filepath.Join(dir, name)
			if unix.Access(path, unix.X_OK) == nil {
				return &delegate{name, path, r}, nil
			}
		}
	}
	shown, err := json.Marshal(name)
	if err != nil {
		return nil, err
	}
	return nil, cniedge.BadKey("ipam.type", shown, "the name of a program in CNI_PATH, which is "+r.Path)
}

// add asks for addresses.
func (d *delegate) add(ctx context.Context) (grant, error) {
	result, err := d.do(ctx, "ADD")
	if err != nil {
		return grant{}, err
	}
	g, err := newGrant(result)
	if err != nil {
		return grant{}, fmt.Errorf("answer of IPAM plugin %s: %w", d.name, err)
	}
	return g, nil
}

// do serves a verb of the plugin; ADD alone has a result. An error that the plugin answered
// with is a [types.Error], code and all; one that it has not is none.
func (d *delegate) do(ctx context.Context, verb string) (result *current.Result, err error) {
	if d.name == ipam.Name && isBuiltIn(d.path) {
		result, err = ipam.Plugin(version).Serve(ctx, verb, d.request)
	} else {
		result, err = d.run(ctx, verb)
	}
	if err != nil {
		return nil, fmt.Errorf("%s of IPAM plugin %s: %w", verb, d.name, err)
	}
	return result, nil
}

// isBuiltIn reports whether the program at path is the ecs-ipam that was built beside this
// one. What it would do can be done here then, without the start of a process, which takes
// longer than all else in a verb. Its linker's hash of it stands in an ELF note at its head
// (cmd/internal/buildid looks for it in as long a one).
func isBuiltIn(path string) bool {
	if builtIn == "" {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 32<<10)
	n, _ := io.ReadFull(f, head)
	return bytes.Contains(head[:n], []byte(builtIn))
}

// run starts the plugin's program.
func (d *delegate) run(ctx context.Context, verb string) (*current.Result, error) {
	out, status, err := d.start(ctx, verb)
	if err != nil {
		return nil, err
	}
	if status.Exited() && status.ExitStatus() == 0 {
		if verb != "ADD" {
			return nil, nil
		}
		return parseResult(out, d.request.CNIVersion)
	}
	var answer types.Error
	if json.Unmarshal(out, &answer) == nil && answer.Code != 0 {
		return nil, &answer
	}
	how := fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		how = status.Signal().String()
	}
	return nil, fmt.Errorf("it ended without an answer (%s): %s", how, bytes.TrimSpace(out))
}

// parseResult reads an answer in that version of CNI.
func parseResult(out []byte, version string) (*current.Result, error) {
	answer, err := create.Create(version, out)
	if err != nil {
		return nil, fmt.Errorf("reading a result of CNI %s: %w", version, err)
	}
	result, err := current.NewResultFromResult(answer)
	if err != nil {
		return nil, fmt.Errorf("converting a result of CNI %s: %w", version, err)
	}
	return result, nil
}

// start starts the program and waits for its end. Should this process be killed, so is the
// plugin: it must not go on taking an address after the runtime has gone on to undo the
// ADD. Its log is ours.
//
// This does by hand what os/exec would, which starts a process more to learn what the
// kernel can do: 0.8 ms of an ADD that takes 8.
func (d *delegate) start(ctx context.Context, verb string) (out []byte, status syscall.WaitStatus, err error) {
	// The kernel kills the child when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stdin, config, err := os.Pipe()
	if err != nil {
		return nil, 0, fmt.Errorf("making a pipe: %w", err)
	}
	defer config.Close()
	answer, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return nil, 0, fmt.Errorf("making a pipe: %w", err)
	}
	defer answer.Close()

	pidfd := -1
	pid, err := syscall.ForkExec(d.path, []string{d.path}, &syscall.ProcAttr{
		Env:   d.request.Environ(verb),
		Files: []uintptr{stdin.Fd(), stdout.Fd(), os.Stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, PidFD: &pidfd},
	})
	stdin.Close()
	stdout.Close()
	if err != nil {
		return nil, 0, fmt.Errorf("starting %s: %w", d.path, err)
	}
	defer unix.Close(pidfd)
	defer context.AfterFunc(ctx, func() {
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		answer.Close() // a child of the plugin may hold the other end
	})()

	written := make(chan struct{})
	go func() {
		defer close(written)
		config.Write(d.request.Config) // fails if the plugin ends before it has read all, which it may
		config.Close()
	}()
	out, err = io.ReadAll(answer)
	for {
		_, waitErr := syscall.Wait4(pid, &status, 0, nil)
		if waitErr == nil {
			break
		}
		if waitErr != syscall.EINTR {
			return nil, 0, fmt.Errorf("waiting for its end: %w", waitErr)
		}
	}
	<-written
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out, status, err
}
