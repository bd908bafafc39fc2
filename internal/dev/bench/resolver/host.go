package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/bench"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// A host is a machine of its own, for one contender: its bridge, its bindings, its Docker
// daemon and what serves its tasks.
type host struct {
	run     *run
	dir     string
	ns      *testnet.Namespace
	guard   string
	service *exec.Cmd
}

// A run is one run of all measurements.
type run struct {
	dir, self string
	rounds    int
	each      time.Duration
	cleanups  []func() error
}

func (r *run) bin() string { return filepath.Join(r.dir, "bin") }

// later has fn called at the end, the last one first.
func (r *run) later(fn func() error) { r.cleanups = append(r.cleanups, fn) }

func (r *run) close() error {
	var errs []error
	for len(r.cleanups) > 0 {
		last := len(r.cleanups) - 1
		errs = append(errs, r.cleanups[last]())
		r.cleanups = r.cleanups[:last]
	}
	return errors.Join(errs...)
}

func (r *run) newHost() (*host, error) {
	ns, err := testnet.New()
	if err != nil {
		return nil, err
	}
	r.later(ns.Close)
	dir, err := os.MkdirTemp(r.dir, "host-")
	return &host{run: r, dir: dir, ns: ns, guard: string(guard.Strict)}, err
}

func (h *host) db() string     { return filepath.Join(h.dir, "bindings.db") }
func (h *host) socket() string { return filepath.Join(h.dir, "docker.sock") }

// attach makes the network namespace of a task and attaches it by the plugins.
func (h *host) attach(ctx context.Context, task int) (*testnet.Namespace, error) {
	ns, err := testnet.New()
	if err != nil {
		return nil, err
	}
	h.run.later(ns.Close)
	return ns, h.add(ctx, containerID(task, 0), ns.Path())
}

// add is the CNI ADD of a namespace.
func (h *host) add(ctx context.Context, container, netns string) error {
	_, err := bench.Call{
		Bin: h.run.bin(), Plugin: "ecs-bridge", Verb: "ADD", Container: container, Netns: netns,
		Conf: fmt.Sprintf(`"guard": %q, "ipam": {"type": "ecs-ipam", "db-path": %q}`, h.guard, h.db()),
	}.Run(ctx, h.ns)
	return err
}

// bind records bindings of the tasks from first on, that share a namespace, and returns
// their addresses.
func (h *host) bind(ctx context.Context, first, end int, netns string) ([]netip.Addr, error) {
	store, err := bindingdb.Open(ctx, h.db(), bindingdb.Options{Create: true})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	pool, err := ecs.NewPool(netip.MustParsePrefix("169.254.172.0/22"), netip.Addr{})
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for task := first; task < end; task++ {
		b, err := store.Acquire(ecs.Binding{
			Attachment: ecs.Attachment{Network: "bench", Container: containerID(task, 0), IfName: "eth0"},
			Netns:      netns, TaskARN: taskARN(task), Created: time.Now(),
		}, bindingdb.Want{Pool: pool})
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, b.Addrs[0].Addr())
	}
	return addrs, nil
}

// docker starts a daemon of that many tasks and containers.
func (h *host) docker(tasks, each int) error {
	// What the addresses of a task are read from.
	holder := exec.Command("sleep", "infinity")
	if err := h.ns.Start(holder); err != nil {
		return err
	}
	h.run.later(func() error {
		err := holder.Process.Kill()
		_ = holder.Wait()
		return err
	})
	d, err := newDaemon(tasks, each, holder.Process.Pid)
	if err != nil {
		return err
	}
	stop, err := d.serve(h.socket())
	if err != nil {
		return err
	}
	h.run.later(stop)
	return nil
}

// resolver starts ecs-resolver and waits until it is ready.
func (h *host) resolver(ctx context.Context, args ...string) error {
	if err := h.start(exec.Command(filepath.Join(h.run.bin(), "ecs-resolver"), h.words(args)...)); err != nil {
		return err
	}
	return h.ready(ctx)
}

func (h *host) words(args []string) []string {
	return append([]string{"--db", h.db(), "--docker-host", "unix://" + h.socket(), "--guard", h.guard, "--log-level", "error"}, args...)
}

// start starts what serves the tasks of the host.
func (h *host) start(cmd *exec.Cmd) error {
	cmd.Stderr = os.Stderr
	if err := h.ns.Start(cmd); err != nil {
		return err
	}
	if h.service == nil {
		h.run.later(h.stop)
	}
	h.service = cmd
	return nil
}

// stop ends what start has started.
func (h *host) stop() error {
	if h.service.ProcessState != nil {
		return nil // stopped before
	}
	if err := h.service.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = h.service.Wait() // a bare handler knows no good end
	return nil
}

// bare starts a bare handler in the resolver's place.
func (h *host) bare(ctx context.Context, file string) error {
	err := h.ns.Do(func() error {
		l, err := link.OpenHost()
		if err != nil {
			return err
		}
		defer l.Close()
		bridge, err := l.EnsureBridge("ecs-bridge", 1500)
		if err != nil {
			return err
		}
		if err := l.EnsureAddr(bridge, link.Endpoint); err != nil {
			return err
		}
		_, _, err = guard.Host{Bridge: "ecs-bridge", Mode: guard.Mode(h.guard)}.Ensure()
		return err
	})
	if err != nil {
		return err
	}
	return h.start(exec.Command(h.run.self, "bare", endpoint, file))
}

const (
	endpoint = "169.254.170.2:80"
	metadata = "http://" + endpoint + "/v2/metadata"
)

// ready waits until the resolver says so.
func (h *host) ready(ctx context.Context) error {
	return testnet.Until(ctx, "the resolver to be ready", func() error {
		status, body, err := h.admin(ctx, "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
}

func (h *host) admin(ctx context.Context, path string) (int, string, error) {
	return h.ns.Ask(ctx, "http://127.0.0.1:51680"+path)
}

// load runs a load in a task's namespace.
func (r *run) load(ctx context.Context, task *testnet.Namespace, words ...string) (t tally, err error) {
	cmd := exec.CommandContext(ctx, r.self, append([]string{"load"}, words...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := task.Run(cmd); err != nil {
		return t, fmt.Errorf("asking: %w", err)
	}
	return t, json.Unmarshal(out.Bytes(), &t)
}

// memory is what the service takes of memory now, and took at most, in MB.
func (h *host) memory() (now, most float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.service.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kB, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			now = kB * 1024 / 1e6
		case "VmHWM:":
			most = kB * 1024 / 1e6
		}
	}
	return now, most, nil
}

// processorTime is what the service has used of the processors since its start.
func (h *host) processorTime() (time.Duration, error) {
	var t unix.Timespec
	clock := int32(^h.service.Process.Pid<<3 | 2) // CPUCLOCK_SCHED of the process
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("reading the processor time of %s: %w", h.service.Path, err)
	}
	return time.Duration(t.Nano()), nil
}

// from asks for the task's metadata from one of the addresses of the host itself.
func (h *host) from(ctx context.Context, addr netip.Addr) error {
	status, body, err := h.ns.AskBy(ctx, testnet.From(addr), metadata)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("from %s: %d %s", addr, status, body)
	}
	return err
}
