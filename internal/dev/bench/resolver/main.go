// Resolver measures ecs-resolver beside the least that an HTTP service in Go takes: a bare
// handler of net/http that writes the same bytes. Each contender has a host of its own, made
// alike, and is asked from inside a task's network namespace over the bridge. The contenders
// take turns in short rounds, so that what disturbs one disturbs all, and of each figure the
// best tenth of the rounds is printed. Beside them is the processor time that the service
// takes for an answer, which is much the same on a machine that has other work.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"taskmeta/internal/dev/bench"
	"taskmeta/internal/dev/testnet"
)

func main() {
	bench.Main("resolver", func(ctx context.Context) error { return start(ctx, os.Args[1:]) })
}

// start is the program, which starts itself anew as the bare handler and as the load.
func start(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "bare":
			return bare(ctx, args[1], args[2])
		case "load":
			return askAll(args[1:])
		}
	}
	f := flag.NewFlagSet("resolver", flag.ExitOnError)
	r := &run{}
	f.IntVar(&r.rounds, "rounds", 30, "`times` that each contender is measured in each way")
	f.DurationVar(&r.each, "each", 100*time.Millisecond, "`time` that each of them takes")
	only := f.String("only", "", "one of the `parts`: load, neighbours, memory, start, stats (default all)")
	dir := f.String("dir", os.TempDir(), "the `folder` for what is needed meanwhile")
	if err := f.Parse(args); err != nil {
		return err
	}
	return r.all(ctx, *dir, *only)
}

// programs are what is measured, by import path.
var programs = []string{"taskmeta/plugins/ecs-ipam", "taskmeta/plugins/ecs-bridge", "taskmeta/resolver"}

func (r *run) all(ctx context.Context, dir, only string) (err error) {
	if r.dir, err = os.MkdirTemp(dir, "taskmeta-bench-"); err != nil {
		return err
	}
	r.later(func() error { return os.RemoveAll(r.dir) })
	defer func() { err = errors.Join(err, r.close()) }()
	if r.self, err = os.Executable(); err != nil {
		return err
	}
	if err := testnet.Build(r.bin(), programs...); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		do   func(context.Context, *tabwriter.Writer) error
	}{
		{"load", r.measureLoad},
		{"neighbours", r.measureNeighbours},
		{"memory", r.measureMemory},
		{"start", r.measureStart},
		{"stats", r.measureStats},
	} {
		if part.name != cmp.Or(only, part.name) {
			continue
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		if err := part.do(ctx, w); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintln(w)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// median of durations or other figures.
func median[T int64 | float64 | time.Duration](all []T) T { return bench.Quantile(all, 0.5) }
