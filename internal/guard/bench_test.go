package guard_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/guard"
	"taskmeta/internal/rtnl"
)

// BenchmarkPort measures what the guard adds to an ADD (attach) and to a DEL (detach),
// beside so many guarded ports.
func BenchmarkPort(b *testing.B) {
	for _, others := range []int{0, 100, 1000} {
		b.Run(fmt.Sprintf("beside %d", others), func(b *testing.B) {
			ns, _ := host(b, "169.254.172.1/22")
			bridge := index(b, ns, "ecs-bridge")
			for i := range others {
				p := numbered(b, ns, bridge, i)
				on(b, ns, func(c *rtnl.Conn) error { return errors.Join(p.Install(c), p.Attach(c)) })
			}
			b.Run("attach", func(b *testing.B) {
				p := numbered(b, ns, bridge, others)
				var took []time.Duration
				for b.Loop() {
					on(b, ns, func(c *rtnl.Conn) error {
						start := time.Now()
						err := errors.Join(p.Install(c), p.Attach(c))
						took = append(took, time.Since(start))
						return err
					})
					b.StopTimer()
					on(b, ns, func(c *rtnl.Conn) error { return guard.Remove(c, p.Bridge, p.Link, true) })
					b.StartTimer()
				}
				reportMedian(b, took)
			})
			b.Run("detach", func(b *testing.B) {
				p := numbered(b, ns, bridge, others+1)
				var took []time.Duration
				for b.Loop() {
					b.StopTimer()
					on(b, ns, func(c *rtnl.Conn) error { return errors.Join(p.Install(c), p.Attach(c)) })
					b.StartTimer()
					on(b, ns, func(c *rtnl.Conn) error {
						start := time.Now()
						err := guard.Remove(c, p.Bridge, p.Link, true)
						took = append(took, time.Since(start))
						return err
					})
				}
				reportMedian(b, took)
			})
		})
	}
}

// reportMedian reports what a mean on a busy machine hides.
func reportMedian(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(took[0])/1e6, "min-ms")
}

// numbered makes the nth further port of the bridge, and is what it may send.
func numbered(b *testing.B, ns *testnet.Namespace, bridge, n int) guard.Port {
	b.Helper()
	n += 10
	addr := netip.AddrFrom4([4]byte{169, 254, 172 + byte(n>>8), byte(n)})
	p := port(guard.Strict, addr.String()+"/22")
	p.Link, p.MAC = fmt.Sprintf("veth%d", n), append(net.HardwareAddr{0x0a, 0x58}, addr.AsSlice()...)
	in(b, ns, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: p.Link, MasterIndex: bridge}, PeerName: fmt.Sprintf("peer%d", n),
		})
	})
	p.LinkIndex, p.BridgeIndex = index(b, ns, p.Link), bridge
	return p
}
