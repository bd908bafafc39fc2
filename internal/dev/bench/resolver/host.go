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
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// A host is a machine of its own, for one contender: its bridge, its bindings, its Docker
// daemon and what serves its tasks.
type host struct {
	run     *run
	dir     string
	ns      *testnet.Namespace
	guard   string
	service *testnet.Resolver // or the bare handler in its place
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
	_, err := testnet.Call{
		Program: filepath.Join(h.run.bin(), "ecs-bridge"), Verb: "ADD", Container: container, Netns: netns,
		Conf: fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "bench", "guard": %q, "ipam": {"type": "ecs-ipam", "db-path": %q}}`, h.guard, h.db()),
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
	d := newDaemon(h.socket(), tasks, each, holder.Process.Pid)
	h.run.later(d.Stop)
	return d.Start()
}

// resolver starts ecs-resolver and waits until it is ready.
func (h *host) resolver(ctx context.Context, args ...string) error {
	if err := h.start(args); err != nil {
		return err
	}
	return h.service.AwaitOK(ctx, "/readyz")
}

// start starts ecs-resolver, with further flags and open sockets.
func (h *host) start(args []string, sockets ...*os.File) error {
	return h.serve(&testnet.Resolver{
		Host: h.ns, Program: filepath.Join(h.run.bin(), "ecs-resolver"), Files: sockets,
		Args: append([]string{"--netns", "host", "--db", h.db(), "--docker-host", "unix://" + h.socket(), "--guard", h.guard, "--log-level", "error"}, args...),
	})
}

// serve starts what serves the tasks of the host.
func (h *host) serve(service *testnet.Resolver) error {
	h.service = service
	h.run.later(service.Stop)
	return service.Start()
}

// bare starts a bare handler in the resolver's place.
func (h *host) bare(ctx context.Context, file string) error {
	err := h.ns.Do(func() error {
		ns, err := netns.Open(h.ns.Path())
		if err != nil {
			return err
		}
		defer ns.Close()
		l, err := link.Open(ns)
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
		_, _, err = guard.Host{Bridge: "ecs-bridge", Mode: guard.Mode(h.guard)}.Ensure(l.Conn)
		return err
	})
	if err != nil {
		return err
	}
	return h.serve(&testnet.Resolver{Host: h.ns, Program: h.run.self, Args: []string{"bare", endpoint, file}})
}

const (
	endpoint = "169.254.170.2:80"
	metadata = "http://" + endpoint + "/v2/metadata"
)

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
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.service.Pid()))
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
	clock := int32(^h.service.Pid()<<3 | 2) // CPUCLOCK_SCHED of the process
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("reading the processor time of %s: %w", h.service.Program, err)
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
