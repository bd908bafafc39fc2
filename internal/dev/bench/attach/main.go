// Attach measures how long a container with a task's label waits for a working endpoint:
// from the daemon's start event, and from the first instruction of its own process, to
// the first answer with status 200, on a host of its own with `serve --auto-attach`.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"taskmeta/internal/dev/bench"
	"taskmeta/internal/dev/testnet"
)

func main() {
	rounds := flag.Int("rounds", 100, "containers that are started one after the other")
	together := flag.Int("together", 8, "containers that are started at once, as often as makes that number")
	flag.Parse()
	bench.Main("attach", func(ctx context.Context) error { return run(ctx, *rounds, *together) })
}

// A runner is a host with a daemon and a resolver.
type runner struct {
	dir      string
	docker   *testnet.Daemon
	resolver *testnet.Resolver

	mu      sync.Mutex
	started map[string]time.Time // by container ID, as the daemon's events say
}

func run(ctx context.Context, rounds, together int) (err error) {
	dir, err := os.MkdirTemp("", "taskmeta-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &runner{dir: dir, started: make(map[string]time.Time)}
	if err := testnet.Build(dir, "taskmeta/internal/dev/bench/attach/probe", "taskmeta/plugins/ecs-ipam", "taskmeta/plugins/ecs-bridge", "taskmeta/resolver"); err != nil {
		return err
	}
	if err := os.Mkdir(b.out(), 0o755); err != nil {
		return err
	}
	host, err := testnet.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	if b.docker, err = testnet.StartDocker(host); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.docker.Close()) }()
	if err := b.docker.Import("probe", map[string]string{"/probe": filepath.Join(dir, "probe")}); err != nil {
		return err
	}
	events, err := b.followEvents(ctx)
	if err != nil {
		return err
	}
	defer events()
	defer func() { err = errors.Join(err, b.resolver.Stop(), b.resolver.Unpin()) }()
	if err := b.serve(ctx, host); err != nil {
		return err
	}

	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "container start to working endpoint, ms\tcontainers\tp50\tp90\tp99\tmax\t")
	if _, err := b.measure(ctx, 2, 1); err != nil { // the first one makes the bridge
		return err
	}
	for _, c := range []struct {
		name     string
		n, width int
	}{
		{"one at a time", rounds, 1},
		{fmt.Sprintf("%d at once", together), (rounds + together - 1) / together * together, together},
	} {
		m, err := b.measure(ctx, c.n, c.width)
		if err != nil {
			return err
		}
		line(t, c.name+": from the start event", m.sinceEvent)
		line(t, c.name+": from the process's first instruction", m.sinceBegun)
		line(t, "  `docker run` itself", m.dockerRun)
	}
	return t.Flush()
}

func (b *runner) db() string  { return filepath.Join(b.dir, "bindings.db") }
func (b *runner) out() string { return filepath.Join(b.dir, "out") }

// followEvents notes when containers start, until the function returned is called.
func (b *runner) followEvents(ctx context.Context) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "docker", "--host", b.docker.Host, "events",
		"--filter", "type=container", "--filter", "event=start", "--format", "{{.ID}} {{.TimeNano}}")
	lines, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("following the daemon's events: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		scanner := bufio.NewScanner(lines)
		for scanner.Scan() {
			var id string
			var nanos int64
			if _, err := fmt.Sscan(scanner.Text(), &id, &nanos); err == nil {
				b.mu.Lock()
				b.started[id] = time.Unix(0, nanos)
				b.mu.Unlock()
			}
		}
		_ = cmd.Wait()
	}()
	return func() { cancel(); <-done }, nil
}

// serve starts the resolver and waits until it is ready.
func (b *runner) serve(ctx context.Context, host *testnet.Namespace) error {
	b.resolver = &testnet.Resolver{
		Host: host, Program: filepath.Join(b.dir, "ecs-resolver"), LogFile: filepath.Join(b.dir, "resolver.log"),
		Args: []string{"serve", "--auto-attach", "--rate", "0", "--db", b.db(), "--docker-host", b.docker.Host},
	}
	if err := b.resolver.Start(); err != nil {
		return err
	}
	return b.resolver.AwaitOK(ctx, "/readyz")
}

// figures are what was measured, one duration a container.
type figures struct{ sinceEvent, sinceBegun, dockerRun []time.Duration }

// measure starts n containers, width of them at once, and removes them before the next.
func (b *runner) measure(ctx context.Context, n, width int) (m figures, err error) {
	for range n / width {
		if err := context.Cause(ctx); err != nil {
			return m, err
		}
		ids := make([]string, width)
		took := make([]time.Duration, width)
		errs := make([]error, width)
		var all sync.WaitGroup
		for i := range width {
			all.Go(func() {
				begun := time.Now()
				ids[i], errs[i] = b.docker.CLI("run", "--detach", "--network", "none", "--volume", b.out()+":/out",
					"--label", fmt.Sprintf("com.amazonaws.ecs.task-arn=arn:aws:ecs:us-west-2:123456789012:task/bench/%d", i), "probe", "/probe", "/out")
				took[i] = time.Since(begun)
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return m, err
		}
		m.dockerRun = append(m.dockerRun, took...)
		for _, id := range ids {
			event, begun, answered, err := b.times(ctx, id)
			if err != nil {
				return m, err
			}
			m.sinceEvent = append(m.sinceEvent, answered.Sub(event))
			m.sinceBegun = append(m.sinceBegun, answered.Sub(begun))
		}
		if _, err := b.docker.CLI(append([]string{"rm", "--force"}, ids...)...); err != nil {
			return m, err
		}
		if err := b.idle(ctx); err != nil {
			return m, err
		}
	}
	return m, nil
}

// times waits for what a container and the daemon have to tell.
func (b *runner) times(ctx context.Context, id string) (event, begun, answered time.Time, err error) {
	file := filepath.Join(b.out(), id[:12])
	err = testnet.Until(ctx, "the container to be answered", func() error {
		b.mu.Lock()
		event = b.started[id]
		b.mu.Unlock()
		if event.IsZero() {
			return errors.New("there is no start event")
		}
		_, err := os.Stat(file)
		return err
	})
	if err != nil {
		return event, begun, answered, fmt.Errorf("%w: %s", err, b.resolver.Log())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return event, begun, answered, err
	}
	var first, last int64
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil && !errors.Is(err, io.EOF) {
		return event, begun, answered, fmt.Errorf("reading %s: %w", file, err)
	}
	return event, time.Unix(0, first), time.Unix(0, last), nil
}

// idle waits until the addresses of removed containers are free, so that the end of one
// is not in the figures of the next.
func (b *runner) idle(ctx context.Context) error {
	return testnet.Until(ctx, "the addresses to be free", func() error {
		out, err := exec.CommandContext(ctx, filepath.Join(b.dir, "ecs-resolver"), "bindings", "--json",
			"--db", b.db(), "--docker-host", b.docker.Host).Output()
		if err == nil && strings.TrimSpace(string(out)) != "[]" {
			err = fmt.Errorf("held: %s", out)
		}
		return err
	})
}

func line(w io.Writer, name string, all []time.Duration) {
	fmt.Fprintf(w, "%s\t%d\t", name, len(all))
	for _, q := range []float64{0.5, 0.9, 0.99, 1} {
		fmt.Fprintf(w, "%.1f\t", bench.MS(bench.Quantile(all, q)))
	}
	fmt.Fprintln(w)
}
