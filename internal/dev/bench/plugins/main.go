// Plugins measures what an ADD and a DEL of the plugins take, beside host-local and bridge
// of the containernetworking project and beside the least that such programs take. All
// contenders take turns in one run, on a host of their own and with their state on one file
// system, so that what disturbs one disturbs all.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"taskmeta/internal/dev/bench"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

func main() {
	rounds := flag.Int("rounds", 60, "times that each contender is measured at each level")
	dir := flag.String("dir", os.TempDir(), "where the state is kept")
	ports := flag.Int("ports", 200, "ports that the bridge has at the last level, at most 1000, which takes long")
	before := flag.String("before", "", "folder of another build's ecs-bridge, to be measured beside this one's")
	flag.Parse()
	bench.Main("plugins", func(ctx context.Context) error { return run(ctx, *dir, *before, *rounds, *ports) })
}

// programs are what is measured, by import path.
var programs = []string{
	"taskmeta/internal/dev/bench/plugins/empty",
	"taskmeta/internal/dev/bench/plugins/commit",
	"taskmeta/plugins/ecs-ipam",
	"taskmeta/plugins/ecs-bridge",
	"github.com/containernetworking/plugins/plugins/ipam/host-local",
	"github.com/containernetworking/plugins/plugins/main/bridge",
}

// together is how many attachments are made at once.
const together = 64

// The levels at which all take turns are numbers of addresses taken.
var levels = []int{0, 500, 1000}

func run(ctx context.Context, dir, before string, rounds, ports int) (err error) {
	dir, err = os.MkdirTemp(dir, "taskmeta-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &runner{dir: dir, taken: make(map[string]int)}
	if err := testnet.Build(b.bin(), programs...); err != nil {
		return err
	}
	if before != "" {
		if err := b.addBefore(before); err != nil {
			return err
		}
	}
	if err := b.installAll(); err != nil {
		return err
	}
	if b.host, err = testnet.New(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.host.Close()) }()
	pin, err := netns.Pin(b.pin())
	defer func() { err = errors.Join(err, netns.Unpin(b.pin())) }()
	if err != nil {
		return err
	}
	defer pin.Close()
	for range together {
		task, err := testnet.New()
		if err != nil {
			return err
		}
		defer task.Close()
		b.tasks = append(b.tasks, task)
	}

	t := newTable()
	for _, taken := range levels {
		level := fmt.Sprintf("%d taken", taken)
		prepare := func(c contender) error { return b.take(ctx, c, b.state(c, level), taken) }
		if err := b.alternate(ctx, t, level, rounds, contenders, prepare); err != nil {
			return err
		}
	}
	if err := b.atOnce(ctx, t); err != nil {
		return err
	}
	if err := b.crowded(ctx, t, ports, rounds); err != nil {
		return err
	}
	if err := t.print(os.Stdout); err != nil {
		return err
	}
	fmt.Println()
	return t.compare(os.Stdout, fmt.Sprintf("%d ports", ports))
}

type runner struct {
	dir   string
	taken map[string]int // addresses that are taken in the template of an IPAM plugin
	host  *testnet.Namespace
	tasks []*testnet.Namespace
}

func (b *runner) bin() string { return filepath.Join(b.dir, "bin") }

// pin is where the network namespace is mounted in which a bridge of its own stands.
func (b *runner) pin() string { return filepath.Join(b.dir, "netns") }

// addBefore makes another build's ecs-bridge one of the contenders.
func (b *runner) addBefore(dir string) error {
	program, err := os.ReadFile(filepath.Join(dir, "ecs-bridge"))
	if err != nil {
		return err
	}
	c := contender{name: "  the build before", program: "ecs-bridge-before", conf: `"bridge": "ecs3", ` + ecsIPAM, link: true}
	contenders = append(contenders, c)
	return os.WriteFile(filepath.Join(b.bin(), c.program), program, 0o755)
}

// installAll writes the programs anew, as an installation does. What Go's linker has written
// lies in the page cache in smaller pieces, so that each start takes 1 ms more.
func (b *runner) installAll() error {
	files, err := os.ReadDir(b.bin())
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(b.bin(), f.Name())
		program, err := os.ReadFile(path)
		if err == nil {
			err = os.Remove(path)
		}
		if err == nil {
			err = os.WriteFile(path, program, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A contender is a plugin with its configuration, in which "%" stands for its state's
// path and "@" for the mount of a network namespace, or a program that is no plugin, with its
// argument.
type contender struct {
	name, program, conf string
	link                bool // makes interfaces
	floor               bool // takes no verb, and has no state that grows
}

const (
	ecsIPAM   = `"ipam": {"type": "ecs-ipam", "db-path": "%/bindings.db"}`
	hostLocal = `"ipam": {"type": "host-local", "dataDir": "%", "ranges": [[{"subnet": "10.200.0.0/22"}]]}`
)

var contenders = []contender{
	{name: "an empty Go program", program: "empty", floor: true},
	{name: "  with one bbolt commit", program: "commit", conf: "%", floor: true},
	{name: "ecs-ipam", program: "ecs-ipam", conf: ecsIPAM},
	{name: "host-local", program: "host-local", conf: hostLocal},
	{name: "ecs-bridge + ecs-ipam", program: "ecs-bridge", conf: `"bridge": "ecs0", ` + ecsIPAM, link: true},
	{name: "  guard off", program: "ecs-bridge", conf: `"bridge": "ecs1", "guard": "off", ` + ecsIPAM, link: true},
	{name: "  own namespace", program: "ecs-bridge", conf: `"bridge": "ecs2", "netns": "@", ` + ecsIPAM, link: true},
	{name: "bridge + host-local", program: "bridge", conf: `"bridge": "cni0", "isGateway": true, ` + hostLocal, link: true},
}

// state is the path of a contender's state at a level.
func (b *runner) state(c contender, level string) string {
	return filepath.Join(b.dir, level, strings.ReplaceAll(strings.TrimSpace(c.name), " ", "-"))
}

// command is one start of a contender.
func (b *runner) command(ctx context.Context, c contender, state, verb, container string, task *testnet.Namespace) *exec.Cmd {
	conf := strings.NewReplacer("%", state, "@", b.pin()).Replace(c.conf)
	if c.floor {
		return exec.CommandContext(ctx, filepath.Join(b.bin(), c.program), conf)
	}
	return testnet.Call{
		Program: filepath.Join(b.bin(), c.program), Verb: verb, Container: container, Netns: task.Path(),
		Conf: `{"cniVersion": "1.0.0", "name": "bench", "type": "` + c.program + `", ` + conf + `}`,
	}.Command(ctx)
}

// crowded measures those that make interfaces with that many ports on the bridge, which
// they have made themselves: all in one namespace, which takes them away at the end.
func (b *runner) crowded(ctx context.Context, t *table, ports, rounds int) (err error) {
	crowd, err := testnet.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, crowd.Close()) }()
	level := fmt.Sprintf("%d ports", ports)
	var those []contender
	for _, c := range contenders {
		if c.link {
			those = append(those, c)
		}
	}
	return b.alternate(ctx, t, level, rounds, those, func(c contender) error {
		for i := range ports {
			cmd := b.command(ctx, c, b.state(c, level), "ADD", fmt.Sprintf("port-%d", i), crowd)
			// A name for each of the namespace's interfaces, of whichever contender.
			cmd.Env = append(cmd.Env, fmt.Sprintf("CNI_IFNAME=%.4s%d", strings.NewReplacer("ecs-bridge", "strict", " ", "").Replace(c.name), i))
			if _, err := b.host.Output(cmd); err != nil {
				return fmt.Errorf("port %d of %s: %w", i, c.name, err)
			}
		}
		return nil
	})
}

// timed runs a contender once.
func (b *runner) timed(ctx context.Context, c contender, state, verb, container string, task *testnet.Namespace) (time.Duration, error) {
	cmd := b.command(ctx, c, state, verb, container, task)
	start := time.Now()
	if _, err := b.host.Output(cmd); err != nil {
		return 0, fmt.Errorf("%s of %s by %s: %w", verb, container, strings.TrimSpace(c.name), err)
	}
	return time.Since(start), nil
}

// alternate lets each of those do an ADD and a DEL in each round, once all are prepared.
func (b *runner) alternate(ctx context.Context, t *table, level string, rounds int, those []contender, prepare func(contender) error) error {
	if err := os.MkdirAll(filepath.Join(b.dir, level), 0o755); err != nil {
		return err
	}
	for _, c := range those {
		if err := prepare(c); err != nil {
			return err
		}
	}
	for round := range rounds {
		for _, c := range those {
			for _, verb := range []string{"ADD", "DEL"} {
				took, err := b.timed(ctx, c, b.state(c, level), verb, fmt.Sprintf("round-%d", round), b.tasks[0])
				if err != nil {
					return err
				}
				t.add(c, verb, level, took)
			}
		}
	}
	return nil
}

// take makes a contender's state one in which that many addresses are taken, by containers
// that need not exist for its IPAM plugin. That plugin takes each of them once, in a
// template, for all contenders and levels.
func (b *runner) take(ctx context.Context, c contender, state string, n int) error {
	switch {
	case c.floor:
		return nil
	case strings.Contains(c.conf, "ecs-ipam"):
		c.program = "ecs-ipam"
	default:
		c.program = "host-local"
	}
	template := filepath.Join(b.dir, "template", c.program)
	if err := os.MkdirAll(template, 0o755); err != nil {
		return err
	}
	for ; b.taken[c.program] < n; b.taken[c.program]++ {
		if _, err := b.timed(ctx, c, template, "ADD", fmt.Sprintf("taken-%d", b.taken[c.program]), b.tasks[0]); err != nil {
			return err
		}
	}
	return os.CopyFS(state, os.DirFS(template))
}

// atOnce starts many ADDs together, then their DELs, and measures until the last is done.
func (b *runner) atOnce(ctx context.Context, t *table) error {
	level := fmt.Sprintf("%d at once", together)
	if err := os.MkdirAll(filepath.Join(b.dir, level), 0o755); err != nil {
		return err
	}
	for range 5 {
		for _, c := range contenders {
			for _, verb := range []string{"ADD", "DEL"} {
				var all sync.WaitGroup
				errs := make([]error, together)
				start := time.Now()
				for i, task := range b.tasks {
					all.Go(func() {
						state := b.state(c, level)
						if c.floor {
							state += fmt.Sprint(i) // a bbolt file that is locked is waited for in steps of 50 ms
						}
						_, errs[i] = b.timed(ctx, c, state, verb, fmt.Sprintf("c%d", i), task)
					})
				}
				all.Wait()
				if err := errors.Join(errs...); err != nil {
					return err
				}
				t.add(c, verb, level, time.Since(start))
			}
		}
	}
	return nil
}

// A table collects durations by contender, verb and level.
type table struct {
	levels []string
	cells  map[cell][]time.Duration
}

type cell struct {
	contender   contender
	verb, level string
}

func newTable() *table { return &table{cells: make(map[cell][]time.Duration)} }

func (t *table) add(c contender, verb, level string, took time.Duration) {
	if !slices.Contains(t.levels, level) {
		t.levels = append(t.levels, level)
	}
	k := cell{c, verb, level}
	t.cells[k] = append(t.cells[k], took)
}

func (t *table) print(f *os.File) error {
	w := tabwriter.NewWriter(f, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "ms, p50 / p99\t\t")
	for _, level := range t.levels {
		fmt.Fprintf(w, "%s\t", level)
	}
	fmt.Fprintln(w)
	for _, c := range contenders {
		for _, verb := range []string{"ADD", "DEL"} {
			if c.floor && verb == "DEL" {
				continue
			}
			label := verb
			if c.floor {
				label = ""
			}
			fmt.Fprintf(w, "%s\t%s\t", c.name, label)
			for _, level := range t.levels {
				took := t.cells[cell{c, verb, level}]
				if len(took) == 0 {
					fmt.Fprint(w, "\t")
					continue
				}
				fmt.Fprintf(w, "%.2f / %.2f\t", bench.MS(bench.Quantile(took, 0.5)), bench.MS(bench.Quantile(took, 0.99)))
			}
			fmt.Fprintln(w)
		}
	}
	return w.Flush()
}

// p50 is the median of a contender that is known by its name.
func (t *table) p50(name, verb, level string) time.Duration {
	for c, took := range t.cells {
		if strings.TrimSpace(c.contender.name) == name && c.verb == verb && c.level == level {
			return bench.Quantile(took, 0.5)
		}
	}
	return 0
}

// compare prints how the medians stand to each other, beside what is aimed at.
func (t *table) compare(f *os.File, crowded string) error {
	const (
		ipam, hostLocal          = "ecs-ipam", "host-local"
		guarded, plain, upstream = "ecs-bridge + ecs-ipam", "guard off", "bridge + host-local"
		none, half, most, all    = "0 taken", "500 taken", "1000 taken", "64 at once"
	)
	type side struct{ name, verb, level string }
	w := tabwriter.NewWriter(f, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "ratio of medians\tis\taim\t")
	ratio := func(a, b side, aim float64) {
		fmt.Fprintf(w, "%s %s, %s : %s %s, %s\t%.2f\t%.2f\t\n", a.name, a.verb, a.level, b.name, b.verb, b.level,
			bench.MS(t.p50(a.name, a.verb, a.level))/bench.MS(t.p50(b.name, b.verb, b.level)), aim)
	}
	ratio(side{ipam, "ADD", most}, side{ipam, "ADD", none}, 1.2)
	ratio(side{ipam, "ADD", most}, side{hostLocal, "ADD", most}, 0.25)
	ratio(side{ipam, "ADD", none}, side{hostLocal, "ADD", none}, 0.95)
	for _, level := range []string{none, half, most, crowded} {
		ratio(side{plain, "ADD", level}, side{upstream, "ADD", level}, 0.5)
		ratio(side{guarded, "ADD", level}, side{upstream, "ADD", level}, 0.6)
		ratio(side{guarded, "DEL", level}, side{upstream, "DEL", level}, 1)
	}
	ratio(side{ipam, "ADD", all}, side{hostLocal, "ADD", all}, 1)
	ratio(side{guarded, "ADD", all}, side{upstream, "ADD", all}, 1)
	added := t.p50(guarded, "ADD", crowded) - t.p50(plain, "ADD", crowded)
	fmt.Fprintf(w, "ms that the guard adds to an ADD, %s\t%.2f\t3.00\t\n", crowded, bench.MS(added))
	return w.Flush()
}
