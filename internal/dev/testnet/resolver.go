package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"taskmeta/internal/netns"
)

// stopTime bounds the end of a resolver: more than it gives the answers under way.
const stopTime = 30 * time.Second

// A Resolver is an ecs-resolver on a host. It can be started again once it has ended.
type Resolver struct {
	Host    *Namespace
	Program string // its path
	Args    []string
	Env     []string            // further variables
	Files   []*os.File          // passed to it as the descriptors from 3 on
	User    *syscall.Credential // nil is root
	LogFile string              // what it logs is added to it, "" is this process's stderr

	cmd   *exec.Cmd
	ended chan struct{} // closed once err is set
	err   error         // of the process that ended
}

// Start starts the resolver and does not wait for it.
func (r *Resolver) Start() (err error) {
	log := os.Stderr
	if r.LogFile != "" {
		if log, err = os.OpenFile(r.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return err
		}
		defer log.Close()
	}
	cmd := exec.Command(r.Program, r.Args...)
	cmd.Env = append(os.Environ(), r.Env...)
	cmd.ExtraFiles = r.Files
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.User}
	if err := r.Host.Start(cmd); err != nil {
		return fmt.Errorf("starting the resolver: %w", err)
	}
	ended := make(chan struct{})
	r.cmd, r.ended = cmd, ended
	go func() {
		r.err = cmd.Wait()
		close(ended)
	}()
	return nil
}

// Pid is the process ID of a resolver that was started.
func (r *Resolver) Pid() int { return r.cmd.Process.Pid }

// Admin asks the admin listener, at its usual address.
func (r *Resolver) Admin(ctx context.Context, path string) (status int, body string, err error) {
	return r.Host.Ask(ctx, "http://127.0.0.1:51680"+path)
}

// AwaitOK waits until the admin listener answers a path with status 200: /healthz when the
// resolver serves, /readyz when it can answer tasks too.
func (r *Resolver) AwaitOK(ctx context.Context, path string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := Until(ctx, "the resolver's "+path, func() error {
		select {
		case <-r.ended:
			cancel(fmt.Errorf("the resolver ended: %w", r.err))
			return nil
		default:
		}
		status, body, err := r.Admin(ctx, path)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	if err = errors.Join(err, context.Cause(ctx)); err != nil {
		return fmt.Errorf("%w; its log:\n%s", err, r.excerpt())
	}
	return nil
}

// Stop has the resolver end by SIGTERM and waits for it. It is an error if it ended badly,
// now or before.
func (r *Resolver) Stop() error { return r.end(syscall.SIGTERM) }

// Kill ends the resolver by SIGKILL.
func (r *Resolver) Kill() error {
	if err := r.end(syscall.SIGKILL); !errors.As(err, new(*exec.ExitError)) {
		return err
	}
	return nil
}

func (r *Resolver) end(signal syscall.Signal) error {
	if r.cmd == nil {
		return nil
	}
	process := r.cmd.Process
	r.cmd = nil
	if err := process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending the resolver: %w", err)
	}
	select {
	case <-r.ended:
	case <-time.After(stopTime):
		return errors.Join(errors.New("the resolver does not end"), process.Kill())
	}
	if r.err != nil {
		return fmt.Errorf("the resolver ended: %w", r.err)
	}
	return nil
}

// Unpin takes away the network namespace that the resolver has pinned beside its bindings
// file, once it has ended.
func (r *Resolver) Unpin() error {
	for i, arg := range r.Args {
		if arg == "--db" && i+1 < len(r.Args) {
			return netns.Unpin(netns.PinPath(r.Args[i+1]))
		}
	}
	for _, v := range r.Env {
		if path, ok := strings.CutPrefix(v, "IPAM_DB_PATH="); ok {
			return netns.Unpin(netns.PinPath(path))
		}
	}
	return nil
}

// Log returns what the resolver has logged.
func (r *Resolver) Log() string {
	if r.LogFile == "" {
		return "" // it stands on this process's stderr
	}
	text, err := os.ReadFile(r.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// excerpt is all of the log above the debug level, and its last lines. A storm leaves
// thousands of others.
func (r *Resolver) excerpt() string {
	lines := strings.SplitAfter(r.Log(), "\n")
	var worth strings.Builder
	for i, line := range lines {
		if i >= len(lines)-20 || !strings.Contains(line, `"level":"DEBUG"`) {
			worth.WriteString(line)
		}
	}
	return worth.String()
}

// Serve starts the resolver for a test and waits until the path of its admin listener
// answers with status 200. The test ends it, which must end well, and shows the log if it
// fails.
func (r *Resolver) Serve(t testing.TB, path string) {
	t.Helper()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Stop(), r.Unpin()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the resolver's log:\n%s", r.excerpt())
		}
	})
	if err := r.AwaitOK(t.Context(), path); err != nil {
		t.Fatal(err)
	}
}

// AwaitLog waits until a line of the log has all the texts.
func (r *Resolver) AwaitLog(t testing.TB, texts ...string) {
	t.Helper()
	Await(t, "a line in the resolver's log", func() error {
	lines:
		for line := range strings.Lines(r.Log()) {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			return nil
		}
		return fmt.Errorf("no line with %q", texts)
	})
}
