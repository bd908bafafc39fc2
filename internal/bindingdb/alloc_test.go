//go:build !race

package bindingdb

import "testing"

// The race detector allocates where the code itself does not.
func TestLookAtAnUnchangedFileAllocatesNothing(t *testing.T) {
	path := newPath(t)
	addr := mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "10.0.0.0/24")}).Addrs[0].Addr()
	r := newReader(t, path)
	mustBinding(t, r, addr)
	if n := testing.AllocsPerRun(100, func() { r.Binding(addr) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
