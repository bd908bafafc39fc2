package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

// Each call of a command has a deadline, whatever the daemon does.
func TestCallsHaveADeadline(t *testing.T) {
	t.Parallel()
	calls := map[string]func(*Client) error{
		"Container": func(c *Client) error { _, err := c.Container(context.Background(), "web"); return err },
		"Names":     func(c *Client) error { _, err := c.Names(context.Background()); return err },
		"Version":   func(c *Client) error { _, err := c.Version(context.Background()); return err },
	}
	for name, call := range calls {
		for _, what := range []string{"everything", "all but ping"} {
			t.Run(name+", hangs: "+what, func(t *testing.T) {
				t.Parallel()
				f := fakedocker.T(t)
				f.Replace(func(kind string, w http.ResponseWriter, r *http.Request) bool {
					return (what == "everything" || kind != "/_ping") && fakedocker.Hang(kind, w, r)
				})
				f.Serve(t)
				c, err := NewClient(f.Host)
				if err != nil {
					t.Fatal(err)
				}
				c.timeout = 100 * time.Millisecond
				done := make(chan error, 1)
				go func() { done <- call(c) }()
				select {
				case err := <-done:
					if !errors.Is(err, ecs.ErrDockerUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%v, want a deadline", err)
					}
				case <-time.After(10 * time.Second):
					t.Error("it hangs")
				}
			})
		}
	}
}

// Docker may be replaced by one that does not speak the version of the API any more that
// was negotiated with the one before: a newer one, or an older one.
func TestADaemonOfAnotherVersion(t *testing.T) {
	t.Parallel()
	for name, api := range map[string][2]string{"newer": {"1.44", "1.52"}, "older": {"1.24", "1.40"}} {
		for _, how := range []string{"restarted", "behind a proxy that stays"} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				pause := fakedocker.Container(0, "", arn)
				f, x := indexOf(t, pause)
				b := bindingOf(pause.ID)
				mustTask(t, x, b)
				await(t, "the connection", connected(x))
				command := x.daemon // used on, as by whoever attaches
				if how == "restarted" {
					if err := f.Stop(); err != nil {
						t.Fatal(err)
					}
				}
				f.SetAPI(api[0], api[1])
				if how == "restarted" {
					if err := f.Start(); err != nil {
						t.Fatal(err)
					}
				}
				if how != "restarted" {
					if c, err := command.Container(t.Context(), pause.ID); err != nil || c.ID != pause.ID {
						t.Errorf("Container: %v, %v", c, err)
					}
				}
				f.Put(events.ActionDie, fakedocker.Stopped(pause, 1))
				awaitTask(t, x, b, "what happens then", func(task *ecs.Task) bool { return task.Known == ecs.StatusStopped })
				await(t, "the connection", connected(x))
				f.Put(events.ActionStart, pause)
				awaitTask(t, x, b, "a start", func(task *ecs.Task) bool { return task.Known != ecs.StatusStopped })
				await(t, "statistics", func() error {
					stats, err := x.Stats(t.Context(), []string{pause.ID})
					if err == nil && stats[pause.ID] == nil {
						err = errNone
					}
					return err
				})
				if v, err := command.Version(t.Context()); err != nil || !strings.Contains(v, "fake") {
					t.Errorf("Version: %q, %v", v, err)
				}
			})
		}
	}
}

// What is told of a daemon that cannot be asked is why, and what to do.
func TestTheCauseOfAFailedConnection(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "docker") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	closes, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes.Close() })
	go func() {
		for c, err := closes.Accept(); err == nil; c, err = closes.Accept() {
			_ = c.Close()
		}
	}()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "left"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ host, says string }{
		"no socket":            {"unix://" + dir + "/none", "nothing answers at unix://" + dir + "/none: start it, or name another with --docker-host: no such file or directory"},
		"nobody listens":       {"unix://" + dir + "/left", "nothing answers at unix://" + dir + "/left: start it, or name another with --docker-host: connection refused"},
		"a file":               {"unix://" + dir + "/file", dir + "/file is no socket"},
		"a folder":             {"unix://" + dir, dir + " is no socket"},
		"nobody at the port":   {"tcp://" + nobody.Addr().String(), "connection refused: start it, or name another with --docker-host"},
		"no daemon, a proxy":   {"tcp://" + closes.Addr().String(), "error during connect"},
		"TLS that is not used": {"tcp://" + secure.Listener.Addr().String(), "wants TLS: set DOCKER_TLS_VERIFY=1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := NewClient(test.host)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Version(t.Context()); !errors.Is(err, ecs.ErrDockerUnavailable) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("a command: %v, want %q", err, test.says)
			}
			x := New(Config{Client: c, Logger: discard})
			run(t, x)
			await(t, "the cause in the state", func() error {
				if s := x.State(); s.Connected || s.Err == nil || !strings.Contains(s.Err.Error(), test.says) {
					return fmt.Errorf("%v, want %q", s.Err, test.says)
				}
				return nil
			})
		})
	}
}
