package ecs

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestPoolGrantsWhatItCounts(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		subnet, gateway string
		count           uint64
		first           string
	}{
		"the default subnet":               {subnet: "169.254.172.0/22", count: 1021, first: "169.254.172.2"},
		"a gateway in the middle":          {subnet: "10.0.0.0/29", gateway: "10.0.0.3", count: 5, first: "10.0.0.1"},
		"the smallest":                     {subnet: "10.0.0.0/30", count: 1, first: "10.0.0.2"},
		"one that has the endpoint inside": {subnet: "169.254.170.0/29", count: 4, first: "169.254.170.3"},
		"the endpoint as the gateway":      {subnet: "169.254.170.0/29", gateway: "169.254.170.2", count: 5, first: "169.254.170.1"},
		"IPv6 has no broadcast address":    {subnet: "fd00:ec2::172:0/125", count: 6, first: "fd00:ec2::172:2"},
		"IPv6, a gateway at the end":       {subnet: "fd00:ec2::172:0/125", gateway: "fd00:ec2::172:7", count: 6, first: "fd00:ec2::172:1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gateway, _ := netip.ParseAddr(test.gateway)
			pool, err := NewPool(netip.MustParsePrefix(test.subnet), gateway)
			if err != nil {
				t.Fatal(err)
			}
			if pool.Count() != test.count {
				t.Errorf("Count() = %d, want %d", pool.Count(), test.count)
			}
			given := make(map[netip.Addr]bool)
			var last netip.Addr
			for {
				addr, err := pool.Next(last, func(a netip.Addr) bool { return given[a] })
				if errors.Is(err, ErrPoolFull) {
					break
				}
				if len(given) == 0 && addr.String() != test.first {
					t.Errorf("first address %s, want %s", addr, test.first)
				}
				if given[addr] || !pool.Subnet.Contains(addr) || addr == pool.Gateway || addr == EndpointAddr {
					t.Fatalf("granted %s", addr)
				}
				given[addr], last = true, addr
			}
			if uint64(len(given)) != test.count {
				t.Errorf("granted %d addresses, want %d", len(given), test.count)
			}
		})
	}
}

func TestPoolOfAWholeIPv6Network(t *testing.T) {
	t.Parallel()
	pool, err := NewPool(netip.MustParsePrefix("fd00::/48"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	if pool.Count() != 1<<64-1 {
		t.Errorf("Count() = %d", pool.Count())
	}
}

func TestNewPoolRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ subnet, gateway string }{
		"an address in place of a subnet":        {subnet: "10.0.0.1/24"},
		"a point-to-point subnet":                {subnet: "10.0.0.0/31"},
		"a single IPv6 address":                  {subnet: "fd00::1/128"},
		"a gateway elsewhere":                    {subnet: "10.0.0.0/24", gateway: "10.0.1.1"},
		"a gateway at the network address":       {subnet: "10.0.0.0/24", gateway: "10.0.0.0"},
		"a gateway at the broadcast address":     {subnet: "10.0.0.0/24", gateway: "10.0.0.255"},
		"a gateway of another family":            {subnet: "10.0.0.0/24", gateway: "fd00::1"},
		"an IPv4 gateway written in IPv6's form": {subnet: "10.0.0.0/24", gateway: "::ffff:10.0.0.1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gateway, _ := netip.ParseAddr(test.gateway)
			if pool, err := NewPool(netip.MustParsePrefix(test.subnet), gateway); err == nil {
				t.Errorf("NewPool made %v", pool)
			}
		})
	}
}

// Next-fit: whatever is taken, the address granted is the nearest one after the last.
func TestPoolNextIsTheNearestFree(t *testing.T) {
	t.Parallel()
	pool, err := NewPool(netip.MustParsePrefix("10.0.0.0/28"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{}
	for a := pool.Subnet.Addr(); pool.Subnet.Contains(a); a = a.Next() {
		addrs = append(addrs, a)
	}
	rapid.Check(t, func(t *rapid.T) {
		taken := make(map[netip.Addr]bool)
		for _, a := range addrs {
			taken[a] = rapid.Bool().Draw(t, a.String())
		}
		last := rapid.IntRange(0, len(addrs)-1).Draw(t, "last")
		var want netip.Addr
		for i := 1; i <= len(addrs) && !want.IsValid(); i++ {
			if a := addrs[(last+i)%len(addrs)]; pool.Grantable(a) && !taken[a] {
				want = a
			}
		}
		got, err := pool.Next(addrs[last], func(a netip.Addr) bool { return taken[a] })
		if got != want || (err == nil) != want.IsValid() {
			t.Fatalf("Next(%s) = %v, %v, want %v", addrs[last], got, err, want)
		}
	})
}
