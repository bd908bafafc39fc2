package ecs_test

import (
	"net"
	"net/netip"
	"testing"

	"taskmeta/internal/ecs"
)

func TestMAC(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ addr, want string }{
		"IPv4 is the four bytes": {"169.254.172.2", "0a:58:a9:fe:ac:02"},
		"IPv6 is a hash":         {"fd00:ec2::2", "0a:59:3b:19:b0:a6"},
		"of the whole address":   {"fd00:ec3::2", "0a:59:72:2e:4d:c9"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			mac := ecs.MAC(netip.MustParseAddr(test.addr))
			if mac.String() != test.want || !ecs.IsMAC(mac) {
				t.Errorf("got %s, one of ours: %v; want %s", mac, ecs.IsMAC(mac), test.want)
			}
		})
	}
	if ecs.IsMAC(net.HardwareAddr{0x0e, 0x58, 169, 254, 172, 2}) {
		t.Error("another's is taken for ours")
	}
}
