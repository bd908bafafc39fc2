package bindingdb

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/ecs"
)

func TestAcquireAndRelease(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	b := mustAcquire(t, path, attachment(1), want)
	if got := fmt.Sprint(b.Addrs); got != "[169.254.172.2/22]" {
		t.Errorf("the first attachment got %s", got)
	}
	if b.BootID != thisBoot {
		t.Errorf("boot ID %q", b.BootID)
	}
	_, err := acquire(t, path, attachment(1), want)
	if !errors.Is(err, ecs.ErrHeld) || !strings.Contains(err.Error(), "169.254.172.2") {
		t.Errorf("a second ADD: %v", err)
	}
	release(t, path, attachment(1))
	release(t, path, attachment(1))
	if b := mustAcquire(t, path, attachment(1), want); b.Addrs[0].Addr() != netip.MustParseAddr("169.254.172.3") {
		t.Errorf("an address that was just freed is given again at once: %v", b.Addrs)
	}
}

func TestTwoFamilies(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	wants := []Want{{Pool: mustPool(t, "169.254.172.0/22")}, {Pool: mustPool(t, "fd00:ec2::172:0/112")}}
	b := mustAcquire(t, path, attachment(1), wants...)
	if got := fmt.Sprint(b.Addrs); got != "[169.254.172.2/22 fd00:ec2::172:2/112]" {
		t.Errorf("got %s", got)
	}
	r := newReader(t, path)
	v4, v6 := mustBinding(t, r, b.Addrs[0].Addr()), mustBinding(t, r, b.Addrs[1].Addr())
	if v4 != v6 {
		t.Error("the two addresses of a binding lead to two bindings")
	}
	release(t, path, attachment(1))
	for _, p := range b.Addrs {
		if _, err := r.Binding(p.Addr()); !errors.Is(err, ecs.ErrNoBinding) {
			t.Errorf("%s after release: %v", p, err)
		}
	}
}

func TestAcquireByName(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	pool := mustPool(t, "10.1.0.0/24")
	want := Want{Pool: pool, Addr: netip.MustParsePrefix("10.1.0.9/24")}
	mustAcquire(t, path, attachment(1), want)
	_, err := acquire(t, path, attachment(2), want)
	if !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), "c1/eth0") {
		t.Errorf("an address that is taken: %v", err)
	}
	if b := mustAcquire(t, path, attachment(2), Want{Pool: pool}); b.Addrs[0].Addr() != netip.MustParseAddr("10.1.0.2") {
		t.Errorf("any other address: %v", b.Addrs)
	}
}

// A failure in the second family must not leave an address of the first.
func TestAcquireIsAllOrNothing(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	v4, v6 := mustPool(t, "10.1.0.0/24"), mustPool(t, "fd00::/126")
	mustAcquire(t, path, attachment(1), Want{Pool: v6})
	mustAcquire(t, path, attachment(2), Want{Pool: v6})
	if _, err := acquire(t, path, attachment(3), Want{Pool: v4}, Want{Pool: v6}); !errors.Is(err, ecs.ErrPoolFull) {
		t.Fatalf("a full pool: %v", err)
	}
	if b := mustAcquire(t, path, attachment(4), Want{Pool: v4}); b.Addrs[0].Addr() != netip.MustParseAddr("10.1.0.2") {
		t.Errorf("the first IPv4 address is lost: got %v", b.Addrs)
	}
}

func TestFullPool(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	err := with(t, path, func(s *Store) error {
		for i := range 1021 {
			if _, err := s.Acquire(ecs.Binding{Attachment: attachment(i)}, want); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = acquire(t, path, attachment(1021), want)
	if !errors.Is(err, ecs.ErrPoolFull) || !strings.Contains(err.Error(), "of 1021 addresses 1021 are held") {
		t.Errorf("the 1022nd: %v", err)
	}
	if err := with(t, path, func(s *Store) error { return s.Room(want) }); !errors.Is(err, ecs.ErrPoolFull) {
		t.Errorf("Room: %v", err)
	}
	for i := range 1021 {
		release(t, path, attachment(i))
	}
	given := make(map[netip.Prefix]bool)
	for i := range 1021 {
		given[mustAcquire(t, path, attachment(i), want).Addrs[0]] = true
	}
	if len(given) != 1021 {
		t.Errorf("after all were freed %d different addresses were given", len(given))
	}
}

// With the pointer just before it, a freed address would be the next: it is passed over.
func TestFreedAddressIsNotNext(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "10.0.0.0/29")} // .2 to .6
	for i := range 5 {
		mustAcquire(t, path, attachment(i), want)
	}
	release(t, path, attachment(3)) // .5
	release(t, path, attachment(0)) // .2, which stands first after .6
	for _, addr := range []string{"10.0.0.5", "10.0.0.2"} {
		if b := mustAcquire(t, path, ecs.Attachment{Container: addr}, want); b.Addrs[0].Addr() != netip.MustParseAddr(addr) {
			t.Errorf("got %v, want %s", b.Addrs, addr)
		}
	}
}

// A gateway is on a bridge: no network gives it away, and none takes for its gateway what
// an attachment has.
func TestGatewaysAreNobodys(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	subnet := netip.MustParsePrefix("10.0.0.0/29") // .1 to .6
	pool := func(gateway string) Want {
		p, err := ecs.NewPool(subnet, netip.MustParseAddr(gateway))
		if err != nil {
			t.Fatal(err)
		}
		return Want{Pool: p}
	}
	mustAcquire(t, path, attachment(1), pool("10.0.0.1"))
	named := pool("10.0.0.6")
	named.Addr = netip.MustParsePrefix("10.0.0.1/29")
	if _, err := acquire(t, path, attachment(2), named); !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), `10.0.0.1 is a gateway, first of network "ecs-task"`) {
		t.Errorf("another network's gateway by name: %v", err)
	}
	if _, err := acquire(t, path, attachment(2), pool("10.0.0.2")); !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), "the gateway 10.0.0.2 is held by c1/eth0") {
		t.Errorf("an attachment's address for a gateway: %v", err)
	}
	for i, addr := range []string{"10.0.0.3", "10.0.0.4", "10.0.0.5"} {
		if b := mustAcquire(t, path, attachment(10+i), pool("10.0.0.6")); b.Addrs[0].Addr() != netip.MustParseAddr(addr) {
			t.Errorf("got %v, want %s", b.Addrs, addr)
		}
	}
	_, err := acquire(t, path, attachment(2), pool("10.0.0.6"))
	if !errors.Is(err, ecs.ErrPoolFull) || !strings.Contains(err.Error(), "of 4 addresses 4 are held") {
		t.Errorf("a full pool: %v", err)
	}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	valid := make(map[ecs.Attachment]bool)
	for i := range 10 {
		mustAcquire(t, path, attachment(i), want)
		if i%2 == 0 {
			valid[attachment(i)] = true
		}
	}
	elsewhere := ecs.Attachment{Network: "ecs-task2", Container: "c1", IfName: "eth0"}
	mustAcquire(t, path, elsewhere, want)
	start := bootclock.Now()
	late := attachment(100)
	mustAcquire(t, path, late, want)

	var freed []ecs.Binding
	if err := with(t, path, func(s *Store) (err error) {
		freed, err = s.Collect("ecs-task", valid, start)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(freed) != 5 {
		t.Errorf("freed %d bindings, want 5", len(freed))
	}
	for _, a := range []ecs.Attachment{attachment(0), attachment(8), elsewhere, late} {
		if err := with(t, path, func(s *Store) error { _, err := s.Lookup(a); return err }); err != nil {
			t.Errorf("in use, yet freed: %v", err)
		}
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	if _, err := Open(t.Context(), path, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file was made: %v", err)
	}
}

func BenchmarkAcquireRelease(b *testing.B) {
	for name, taken := range map[string]int{"none taken": 0, "1000 taken": 1000} {
		b.Run(name, func(b *testing.B) {
			path := newPath(b)
			fillPool(b, path, taken)
			want := Want{Pool: mustPool(b, "169.254.172.0/22")}
			for b.Loop() {
				mustAcquire(b, path, attachment(2000), want)
				release(b, path, attachment(2000))
			}
		})
	}
}

// What is freed by a time stays if it was recorded later: the attachment's key is in use again.
func TestReleaseBefore(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "10.0.0.0/24")})
	if err := with(t, path, func(s *Store) error {
		b, err := s.Lookup(attachment(1))
		for _, before := range []time.Duration{b.Since - 1, b.Since} {
			err = errors.Join(err, s.ReleaseBefore(before, attachment(1), ""))
			if _, e := s.Lookup(attachment(1)); e != nil {
				t.Errorf("it was made at %v and is freed before %v", b.Since, before)
			}
		}
		err = errors.Join(err, s.ReleaseBefore(b.Since+1, attachment(1), ""))
		if _, e := s.Lookup(attachment(1)); !errors.Is(e, ecs.ErrNoBinding) {
			t.Errorf("after its time: %v", e)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// What is adopted has its addresses, unless its attachment or another has a binding by now.
func TestAdopt(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	held := mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "10.0.0.0/24")})
	other := []netip.Prefix{netip.MustParsePrefix("10.0.0.9/24")}
	if err := with(t, path, func(s *Store) error {
		adopted, err := s.Adopt([]ecs.Binding{
			{Attachment: attachment(1), Addrs: other},
			{Attachment: attachment(2), Addrs: held.Addrs},
			{Attachment: attachment(3), Addrs: other},
			{Attachment: attachment(4), Addrs: other},
		})
		if len(adopted) != 1 || adopted[0].Attachment != attachment(3) {
			t.Errorf("adopted %+v; want the third", adopted)
		}
		if b, err := s.Lookup(attachment(3)); err != nil || !slices.Equal(b.Addrs, other) || b.BootID != thisBoot {
			t.Errorf("the third is %+v, %v", b, err)
		}
		if b, err := s.Lookup(attachment(1)); err != nil || !slices.Equal(b.Addrs, held.Addrs) {
			t.Errorf("the first is %+v, %v", b, err)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
