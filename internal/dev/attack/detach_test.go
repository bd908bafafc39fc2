package attack

import (
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// TestAnAnswerUnderWay ends a task while the resolver waits for its statistics, and gives
// its address to another: the answer that is written then must not come there.
func TestAnAnswerUnderWay(t *testing.T) {
	tests := map[string]struct {
		kind
		end   func(testing.TB, *world, *task)
		heard bool
	}{
		"whose task is taken away by DEL": {kind: strict, end: func(t testing.TB, w *world, k *task) { w.detach(t, k) }},
		"whose port is removed by hand": {kind: plain, heard: true, end: func(t testing.TB, w *world, k *task) {
			sh(t, w.host, "ip link del %s", k.veth)
			w.free(t, k)
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newHost(t, tt.kind)
			before, after := w.newTask(t, "before"), w.newTask(t, "after")
			const address = `"ipv4-address": "169.254.172.9/22"`
			w.attach(t, before, address)
			w.serve(t)

			c, err := before.DialContext(t.Context(), "tcp", endpoint4.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// The first statistics take Docker two samples, a second apart.
			if _, err := io.WriteString(c, "GET /v2/stats HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			w.awaitMetric(t, "taskmeta_docker_stats_streams", "1")
			tt.end(t, w, before)
			w.attach(t, after, address)
			if after.ip4 != before.ip4 {
				t.Fatalf("the address is %s, not %s", after.ip4, before.ip4)
			}
			line := tap(t, after.Namespace, "eth0", unix.ETH_P_ALL)
			testnet.Await(t, "the resolver to have answered", func() error {
				_, err := w.metric(`taskmeta_request_duration_seconds_count{endpoint="stats"}`)
				return err
			})
			// What was written before has been delivered before this is answered.
			wait := 200 * time.Millisecond
			if tt.heard {
				wait = 10 * time.Second
			}
			var heard []byte
			got := line.receive(t, time.Now().Add(wait), func(frame []byte) bool {
				if s, ok := segmentIn(frame); ok && s.src == endpoint4 {
					heard = append(heard, s.payload...)
				}
				return strings.Contains(string(heard), before.container)
			})
			if got != tt.heard {
				t.Errorf("the next task with the address heard the answer: %t; want %t", got, tt.heard)
			}
			if !tt.heard && len(heard) > 0 {
				t.Errorf("it heard %q", heard)
			}
		})
	}
}

// free is the IPAM plugin's DEL alone.
func (w *world) free(t testing.TB, k *task) {
	t.Helper()
	if _, err := w.cni("ecs-ipam", "DEL", k.container, k.netns, w.conf(k.container)); err != nil {
		t.Fatal(err)
	}
}
