// Package bench holds what the measuring programs below it share.
package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"taskmeta/internal/dev/testnet"
)

// A Call is one call of a CNI plugin.
type Call struct {
	Bin       string // the folder of the plugins
	Plugin    string // the program's name
	Conf      string // the keys of its configuration but cniVersion, name and type
	Verb      string
	Container string
	Netns     string
}

// Run makes the call on a host and returns how long it took.
func (c Call) Run(ctx context.Context, host *testnet.Namespace) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Bin, c.Plugin))
	cmd.Stdin = bytes.NewBufferString(`{"cniVersion": "1.0.0", "name": "bench", "type": "` + c.Plugin + `", ` + c.Conf + `}`)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+c.Verb, "CNI_CONTAINERID="+c.Container, "CNI_IFNAME=eth0",
		"CNI_NETNS="+c.Netns, "CNI_PATH="+c.Bin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	if err := host.Run(cmd); err != nil {
		return 0, fmt.Errorf("%s of %s by %s: %w\n%s", c.Verb, c.Container, c.Plugin, err, out.Bytes())
	}
	return time.Since(start), nil
}

// Quantile is the smallest value that the fraction q of all does not exceed.
func Quantile[T int64 | float64 | time.Duration](all []T, q float64) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// MS is a duration in milliseconds.
func MS(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
