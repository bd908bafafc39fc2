package endpoint

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/guard"
)

// BenchmarkLook measures a look that finds nothing to do, beside so many tasks: with the
// tasks' ends whose turn it is, as every ten seconds, and without, as when the kernel tells
// of a change.
func BenchmarkLook(b *testing.B) {
	for _, tasks := range []int{100, 1021} {
		h := newHostAt(b, guard.Strict, apart)
		if err := h.Serve(h.sockets); err != nil {
			b.Fatal(err)
		}
		for i := range tasks {
			if _, err := (testnet.Call{
				Program: filepath.Join(bin, "ecs-bridge"), Verb: "ADD", Container: fmt.Sprint("c", i), Netns: testnet.T(b).Path(), Env: []string{"IPAM_DB_PATH=" + h.db},
				Conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge", "ipam": {"type": "ecs-ipam"}}`,
			}).Run(b.Context(), h.Namespace); err != nil {
				b.Fatal(err)
			}
		}
		for _, ends := range []bool{false, true} {
			b.Run(fmt.Sprintf("tasks=%d/ends=%v", tasks, ends), func(b *testing.B) {
				var used time.Duration
				for b.Loop() {
					before := processorTime(b)
					if err := h.ensure(ends); err != nil {
						b.Fatal(err)
					}
					used += processorTime(b) - before
				}
				b.ReportMetric(float64(used.Microseconds())/1000/float64(b.N), "cpu-ms/op")
				if n := h.State().Repairs; n > 0 {
					b.Errorf("%d repairs:\n%s", n, &h.log.text)
				}
			})
		}
	}
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
