package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/guard"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	usual := config{bridge: "ecs-bridge", mtu: 1500, guard: guard.Strict, ipam: "ecs-ipam"}
	with := func(change func(*config)) *config {
		c := usual
		change(&c)
		return &c
	}
	tests := map[string]struct {
		conf  string
		want  *config
		error string
	}{
		"defaults":       {conf: conf(), want: &usual},
		"a bridge":       {conf: conf(`"bridge": "br-0.1"`), want: with(func(c *config) { c.bridge = "br-0.1" })},
		"an MTU":         {conf: conf(`"mtu": 9001`), want: with(func(c *config) { c.mtu = 9001 })},
		"MTU 0":          {conf: conf(`"mtu": 0`), want: &usual},
		"a guard":        {conf: conf(`"guard": "off"`), want: with(func(c *config) { c.guard = guard.Off })},
		"IMDS blocked":   {conf: conf(`"blockInstanceMetadata": true`), want: with(func(c *config) { c.blockIMDS = true })},
		"null":           {conf: conf(`"mtu": null, "bridge": null`), want: &usual},
		"others' keys":   {conf: conf(`"capabilities": {"x": true}, "isGateway": "yes"`), want: &usual},
		"no IPAM":        {conf: `{}`, error: `ipam.type is missing: expected the name of an IPAM plugin`},
		"IPAM, no type":  {conf: `{"ipam": {}}`, error: `ipam.type is missing`},
		"IPAM a list":    {conf: `{"ipam": []}`, error: `ipam is []: expected an object`},
		"a long bridge":  {conf: conf(`"bridge": "sixteen-bytes-xx"`), error: `bridge is "sixteen-bytes-xx": expected the name of an interface, at most 15 bytes`},
		"no bridge":      {conf: conf(`"bridge": ""`), error: `bridge is "": expected`},
		"a path":         {conf: conf(`"bridge": "../x"`), error: `bridge is "../x": expected`},
		"bridge number":  {conf: conf(`"bridge": 1`), error: `bridge is 1: expected`},
		"an MTU in text": {conf: conf(`"mtu": "1500"`), error: `mtu is "1500": expected bytes, from 68 to 65535`},
		"a small MTU":    {conf: conf(`"mtu": 67`), error: `mtu is 67: expected`},
		"a big MTU":      {conf: conf(`"mtu": 65536`), error: `mtu is 65536: expected`},
		"another guard":  {conf: conf(`"guard": "on"`), error: `guard is "on": expected "strict", "source" or "off"`},
		"IMDS in text":   {conf: conf(`"blockInstanceMetadata": "yes"`), error: `blockInstanceMetadata is "yes": expected true or false`},
		"a long subnet":  {conf: `{"ipam": {"type": "x", "connectedSubnetMaskSizeIPv4": 33}}`, error: `ipam.connectedSubnetMaskSizeIPv4 is 33: expected`},
		"no JSON":        {conf: `{`, error: "reading the network configuration"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseConfig([]byte(test.conf))
			if test.error != "" {
				if err == nil || !strings.Contains(err.Error(), test.error) {
					t.Errorf("got %v, want %q", err, test.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(config{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlaceNeedsNoOtherKey(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		conf string
		want place
	}{
		"defaults":     {conf: `{"ipam": {"type": "x"}}`, want: place{bridge: "ecs-bridge", ipam: "x"}},
		"no IPAM":      {conf: `{"bridge": "br0"}`, want: place{bridge: "br0"}},
		"others bad":   {conf: `{"mtu": "x", "guard": 7, "ipam": {"type": "x"}}`, want: place{bridge: "ecs-bridge", ipam: "x"}},
		"ipam is null": {conf: `{"ipam": null}`, want: place{bridge: "ecs-bridge"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := parsePlace([]byte(test.conf)); err != nil || got != test.want {
				t.Errorf("got %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

// Whatever is configured is either refused or something that the kernel can be asked for.
func FuzzConf(f *testing.F) {
	for _, seed := range []string{conf(), conf(`"mtu": 9001, "bridge": "b"`), `{"ipam": {"type": "x", "connectedSubnetMaskSizeIPv6": 64}}`, `{"guard": "source"}`, `null`, `[]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := parseConfig(stdin)
		if err != nil {
			return
		}
		if !isLinkName(c.bridge) || c.mtu < minMTU || c.mtu > maxMTU || c.ipam == "" || c.onLink4 > 32 || c.onLink6 > 128 || c.onLink4 < 0 || c.onLink6 < 0 {
			t.Errorf("%s passes as %+v", stdin, c)
		}
		if _, err := guard.ParseMode(string(c.guard)); err != nil {
			t.Error(err)
		}
		if _, err := parsePlace(stdin); err != nil {
			t.Errorf("what can be added cannot be taken away: %v", err)
		}
	})
}

// Whatever an IPAM plugin answers is refused or has addresses with gateways.
func FuzzGrant(f *testing.F) {
	f.Add([]byte(`{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}], "routes": [{"dst": "0.0.0.0/0"}]}`))
	f.Add([]byte(`{"cniVersion": "1.1.0", "ips": [null], "routes": [null]}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		result, err := parseResult(answer, "1.1.0")
		if err != nil {
			return
		}
		g, err := newGrant(result)
		if err != nil {
			return
		}
		i := (&config{onLink4: 24, blockIMDS: true}).wants("eth0", g)
		for _, p := range append(i.Addrs, g.gateways...) {
			if !p.IsValid() {
				t.Errorf("%s passes with %v", answer, p)
			}
		}
		for _, r := range i.Routes {
			if !r.Dst.IsValid() {
				t.Errorf("%s passes with the route %v", answer, r)
			}
		}
	})
}
