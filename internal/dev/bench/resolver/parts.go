package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netlink"

	"taskmeta/internal/dev/bench"
	"taskmeta/internal/dev/testnet"
)

// each is how many containers a task has in most measurements, and pool how many tasks there
// can be in a subnet of the default size.
const (
	each = 10
	pool = 1021
)

// A contender serves one task of a host of its own, and is asked from that task.
type contender struct {
	name  string
	bare  bool
	args  []string
	guard string
	tasks int

	host *host
	task *testnet.Namespace
	got  []tally // by round
}

func contenders() []*contender {
	return []*contender{
		{name: "bare net/http", bare: true, guard: "strict"},
		{name: "ecs-resolver", guard: "strict", tasks: 1},
		{name: "with 1021 bindings", guard: "strict", tasks: pool},
		{name: "without witness", guard: "strict", tasks: 1, args: []string{"--witness", "off"}},
		{name: "without guard", guard: "off", tasks: 1},
	}
}

// set makes the contender's host and starts what serves. The bare handler writes the bytes
// of file.
func (c *contender) set(ctx context.Context, r *run, file string) (err error) {
	if c.host, err = r.newHost(); err != nil {
		return err
	}
	c.host.guard = c.guard
	if c.task, err = c.host.attach(ctx, 0); err != nil {
		return err
	}
	if c.bare {
		if err := c.host.bare(ctx, file); err != nil {
			return err
		}
		return testnet.Until(ctx, "the bare handler", func() error {
			_, _, err := c.task.Ask(ctx, metadata)
			return err
		})
	}
	if _, err := c.host.bind(ctx, 1, c.tasks, c.task.Path()); err != nil {
		return err
	}
	if err := c.host.docker(c.tasks, each); err != nil {
		return err
	}
	return c.host.resolver(ctx, append([]string{"--rate", "0"}, c.args...)...)
}

func (r *run) measureLoad(ctx context.Context, w *tabwriter.Writer) error {
	all := contenders()
	first := all[1]
	if err := first.set(ctx, r, ""); err != nil {
		return err
	}
	status, body, err := first.task.Ask(ctx, metadata)
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("the first answer: %d %s (%w)", status, body, err)
	}
	file := filepath.Join(r.dir, "body")
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		return err
	}
	for _, c := range all {
		if c == first {
			continue
		}
		if err := c.set(ctx, r, file); err != nil {
			return err
		}
	}

	fmt.Fprintf(w, "An answer of %d bytes to\t\treq/s\tp50 ms\tp99 ms\tCPU µs\treq/s : bare\tp99 : bare\tCPU : bare\t\n", len(body))
	for _, closes := range []bool{false, true} {
		for _, conns := range []int{1, 16, 256} {
			words := []string{"-conns", fmt.Sprint(conns), "-for", r.each.String()}
			mode := fmt.Sprintf("%d kept", conns)
			if closes {
				words = append(words, "-close")
				mode = fmt.Sprintf("%d new", conns)
			}
			if err := r.takeTurns(ctx, all, words); err != nil {
				return err
			}
			for _, c := range all {
				fmt.Fprintf(w, "%s\t%s\t%.0f\t%.2f\t%.2f\t%.0f\t%.2f\t%.2f\t%.2f\t\n", mode, c.name,
					c.best(perSecond), c.best(p50), c.best(p99), c.best(processor),
					c.ratio(all[0], perSecond), c.ratio(all[0], p99), c.ratio(all[0], processor))
			}
		}
	}
	return nil
}

// takeTurns lets the contenders take turns, each beginning a round in its turn.
func (r *run) takeTurns(ctx context.Context, all []*contender, words []string) error {
	for _, c := range all {
		c.got = make([]tally, r.rounds)
	}
	for round := range r.rounds {
		for i := range all {
			c := all[(i+round)%len(all)]
			before, err := c.host.processorTime()
			if err != nil {
				return err
			}
			t, err := r.load(ctx, c.task, words...)
			if err != nil {
				return err
			}
			after, err := c.host.processorTime()
			if err != nil {
				return err
			}
			if t.Failed+t.Refused > 0 || t.OK == 0 {
				return fmt.Errorf("%s by %s: %d answers, %d failures (%s), %d answers other than 200", strings.Join(words, " "), c.name, t.OK, t.Failed, t.Failure, t.Refused)
			}
			t.processor = (after - before) / time.Duration(t.OK)
			c.got[round] = t
		}
	}
	return nil
}

// A figure is one of a tally's, and whether more of it is better.
type figure struct {
	of   func(tally) float64
	more bool
}

// In requests per second, milliseconds, and microseconds.
var (
	perSecond = figure{func(t tally) float64 { return t.PerSecond }, true}
	p50       = figure{func(t tally) float64 { return bench.MS(t.P50) }, false}
	p99       = figure{func(t tally) float64 { return bench.MS(t.P99) }, false}
	processor = figure{func(t tally) float64 { return 1000 * bench.MS(t.processor) }, false}
)

// best is the best tenth of the rounds: what else the machine does makes a round worse, and
// never better.
func (c *contender) best(f figure) float64 {
	var all []float64
	for _, t := range c.got {
		all = append(all, f.of(t))
	}
	if f.more {
		return bench.Quantile(all, 0.9)
	}
	return bench.Quantile(all, 0.1)
}

func (c *contender) ratio(to *contender, f figure) float64 { return c.best(f) / to.best(f) }

// measureNeighbours measures one task that asks now and then, with the limits as they are
// by default, while two others ask as fast as they can on 64 connections and hold as many
// more as they may.
func (r *run) measureNeighbours(ctx context.Context, w *tabwriter.Writer) error {
	h, err := r.newHost()
	if err != nil {
		return err
	}
	var tasks []*testnet.Namespace
	for i := range 3 {
		task, err := h.attach(ctx, i)
		if err != nil {
			return err
		}
		tasks = append(tasks, task)
	}
	if err := h.docker(len(tasks), each); err != nil {
		return err
	}
	if err := h.resolver(ctx); err != nil {
		return err
	}
	measure := 20 * r.each
	asks := []string{"-pace", "30ms", "-for", measure.String()}
	var alone, beside []tally
	for range max(1, r.rounds/6) {
		t, err := r.load(ctx, tasks[0], asks...)
		if err != nil {
			return err
		}
		alone = append(alone, t)

		var floods sync.WaitGroup
		errs := make([]error, len(tasks))
		for i, task := range tasks[1:] {
			floods.Go(func() {
				_, errs[i] = r.load(ctx, task, "-conns", "64", "-hold", "440", "-for", (measure + 2*time.Second).String())
			})
		}
		pause(ctx, time.Second) // until the flood has risen
		t, err = r.load(ctx, tasks[0], asks...)
		floods.Wait()
		if err := errors.Join(append(errs, err)...); err != nil {
			return err
		}
		beside = append(beside, t)
	}
	fmt.Fprintln(w, "A task that asks every 30 ms\t\tp50 ms\tp99 ms\tfailed\t")
	for _, row := range []struct {
		name string
		got  []tally
	}{{"alone", alone}, {"beside two that flood and hold", beside}} {
		c := contender{got: row.got}
		failed := 0
		for _, t := range row.got {
			failed += t.Failed + t.Refused
		}
		fmt.Fprintf(w, "\t%s\t%.2f\t%.2f\t%d\t\n", row.name,
			c.best(p50), c.best(p99), failed)
	}
	return nil
}

// looped makes a host whose loopback has all addresses of the tasks, so that each of many
// tasks can ask without a namespace of its own.
func (r *run) looped(ctx context.Context, tasks, each int) (h *host, addrs []netip.Addr, socket *os.File, err error) {
	if h, err = r.newHost(); err != nil {
		return
	}
	handle, err := h.ns.Handle()
	if err != nil {
		return
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return
	}
	for _, text := range []string{"169.254.172.1/22", "169.254.170.2/32"} {
		addr, e := netlink.ParseAddr(text)
		if e != nil {
			return h, nil, nil, e
		}
		if err = handle.AddrAdd(lo, addr); err != nil {
			return
		}
	}
	if addrs, err = h.bind(ctx, 0, tasks, h.ns.Path()); err != nil {
		return
	}
	if err = h.docker(tasks, each); err != nil {
		return
	}
	l, err := h.ns.Listen("tcp", endpoint)
	if err != nil {
		return
	}
	defer l.Close()
	socket, err = l.(*net.TCPListener).File()
	return
}

// passed is the flags of a resolver that serves on an open socket.
var passed = []string{"--listen", "fd:3", "--bridge", "none", "--rate", "0"}

func (r *run) measureMemory(ctx context.Context, w *tabwriter.Writer) error {
	fmt.Fprintln(w, "Memory once every task has asked\ttasks\tcontainers\tRSS MB\tmost MB\t")
	for _, size := range []struct{ tasks, each int }{{1, 3}, {pool, 3}, {1000, 10}} {
		h, addrs, socket, err := r.looped(ctx, size.tasks, size.each)
		if err != nil {
			return err
		}
		if err := h.start(passed, socket); err != nil {
			return err
		}
		if err := h.service.AwaitOK(ctx, "/readyz"); err != nil {
			return err
		}
		for _, addr := range addrs {
			if err := h.from(ctx, addr); err != nil {
				return err
			}
		}
		now, most, err := h.memory()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\t%d\t%d\t%.1f\t%.1f\t\n", size.tasks, size.tasks*size.each, now, most)
		if err := errors.Join(h.service.Stop(), socket.Close()); err != nil {
			return err
		}
	}
	return nil
}

// measureStart measures from the start of the program until a task is answered whose
// containers are the oldest, and so the last in the daemon's list, and until the program says
// that it is ready. The request waits in the socket, which is open before.
func (r *run) measureStart(ctx context.Context, w *tabwriter.Writer) error {
	fmt.Fprintf(w, "Start, with %v an inspection\tcontainers\tfirst answer ms\tready ms\t\n", inspectTime)
	for _, tasks := range []int{1, 100, 1000} {
		h, addrs, socket, err := r.looped(ctx, tasks, each)
		if err != nil {
			return err
		}
		var answered, ready []time.Duration
		for range max(1, r.rounds/6) {
			began := time.Now()
			if err := errors.Join(h.start(passed, socket), h.from(ctx, addrs[0])); err != nil {
				return err
			}
			answered = append(answered, time.Since(began))
			err := h.service.AwaitOK(ctx, "/readyz")
			ready = append(ready, time.Since(began))
			if err := errors.Join(err, h.service.Stop()); err != nil {
				return err
			}
		}
		if err := socket.Close(); err != nil {
			return err
		}
		fmt.Fprintf(w, "\t%d\t%.0f\t%.0f\t\n", tasks*each, bench.MS(median(answered)), bench.MS(median(ready)))
	}
	return nil
}

// measureStats asks for the statistics of a task of a real Docker daemon.
func (r *run) measureStats(ctx context.Context, w *tabwriter.Writer) error {
	h, err := r.newHost()
	if err != nil {
		return err
	}
	d, err := testnet.StartDocker(h.ns)
	if err != nil {
		return err
	}
	r.later(d.Close)
	if err := d.ImportBusybox("bench", nil); err != nil {
		return err
	}
	task, err := h.realTask(ctx, d)
	if err != nil {
		return err
	}

	var cold []time.Duration
	for range max(1, r.rounds/6) {
		if h.service != nil {
			if err := h.service.Stop(); err != nil {
				return err
			}
		}
		if err := h.resolver(ctx, "--docker-host", d.Host, "--rate", "0"); err != nil {
			return err
		}
		began := time.Now()
		status, body, err := task.Ask(ctx, "http://"+endpoint+"/v2/stats")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("the first question: %d %s (%w)", status, body, err)
		}
		cold = append(cold, time.Since(began))
	}
	warm, err := r.load(ctx, task, "-path", "/v2/stats", "-for", r.each.String())
	if err != nil {
		return err
	}
	asked := time.Now()
	err = testnet.Until(ctx, "the streams to end", func() error {
		_, metrics, err := h.service.Admin(ctx, "/metrics")
		if err == nil && !strings.Contains(metrics, "\ntaskmeta_docker_stats_streams 0\n") {
			err = errors.New("some are open")
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Statistics of %d containers\tp50 ms\tp99 ms\t\n", each)
	fmt.Fprintf(w, "first question\t%.0f\t%.0f\t\n", bench.MS(median(cold)), bench.MS(bench.Quantile(cold, 1)))
	fmt.Fprintf(w, "later ones\t%.2f\t%.2f\t\n", bench.MS(warm.P50), bench.MS(warm.P99))
	fmt.Fprintf(w, "no stream is left after\t%.0f\t\t\n", bench.MS(time.Since(asked)))
	return nil
}

// realTask attaches a task of a real daemon's containers.
func (h *host) realTask(ctx context.Context, d *testnet.Daemon) (*testnet.Namespace, error) {
	pauseID, err := d.CLI("run", "--detach", "--network", "none", "--label", "com.amazonaws.ecs.task-arn="+taskARN(0), "bench", "/bin/sleep", "infinity")
	if err != nil {
		return nil, err
	}
	for range each - 1 {
		if _, err := d.CLI("run", "--detach", "--network", "container:"+pauseID, "bench", "/bin/sleep", "infinity"); err != nil {
			return nil, err
		}
	}
	pid, err := d.CLI("inspect", "--format", "{{.State.Pid}}", pauseID)
	if err != nil {
		return nil, err
	}
	netns := "/proc/" + pid + "/ns/net"
	if err := h.add(ctx, pauseID, netns); err != nil {
		return nil, err
	}
	task, err := testnet.Open(netns)
	if err != nil {
		return nil, err
	}
	h.run.later(task.Close)
	return task, nil
}
