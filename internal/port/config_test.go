package port

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/guard"
)

// conf is a configuration with these keys beside the IPAM plugin's.
func conf(keys ...string) string {
	return "{" + strings.Join(append(keys, `"ipam": {"type": "ecs-ipam"}`), ", ") + "}"
}

func TestConfig(t *testing.T) {
	t.Parallel()
	usual := Config{Bridge: "ecs-bridge", MTU: 1500, Guard: guard.Strict, IPAM: "ecs-ipam"}
	with := func(change func(*Config)) *Config {
		c := usual
		change(&c)
		return &c
	}
	tests := map[string]struct {
		conf  string
		want  *Config
		error string
	}{
		"defaults":       {conf: conf(), want: &usual},
		"a bridge":       {conf: conf(`"bridge": "br-0.1"`), want: with(func(c *Config) { c.Bridge = "br-0.1" })},
		"an MTU":         {conf: conf(`"mtu": 9001`), want: with(func(c *Config) { c.MTU = 9001 })},
		"MTU 0":          {conf: conf(`"mtu": 0`), want: &usual},
		"a guard":        {conf: conf(`"guard": "off"`), want: with(func(c *Config) { c.Guard = guard.Off })},
		"IMDS blocked":   {conf: conf(`"blockInstanceMetadata": true`), want: with(func(c *Config) { c.BlockIMDS = true })},
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
			got, err := ParseConfig([]byte(test.conf))
			if test.error != "" {
				if err == nil || !strings.Contains(err.Error(), test.error) {
					t.Errorf("got %v, want %q", err, test.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlaceNeedsNoOtherKey(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		conf string
		want Place
	}{
		"defaults":     {conf: `{"ipam": {"type": "x"}}`, want: Place{Bridge: "ecs-bridge", IPAM: "x"}},
		"no IPAM":      {conf: `{"bridge": "br0"}`, want: Place{Bridge: "br0"}},
		"others bad":   {conf: `{"mtu": "x", "guard": 7, "ipam": {"type": "x"}}`, want: Place{Bridge: "ecs-bridge", IPAM: "x"}},
		"ipam is null": {conf: `{"ipam": null}`, want: Place{Bridge: "ecs-bridge"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := ParsePlace([]byte(test.conf)); err != nil || got != test.want {
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
		c, err := ParseConfig(stdin)
		if err != nil {
			return
		}
		if !isLinkName(c.Bridge) || c.MTU < minMTU || c.MTU > maxMTU || c.IPAM == "" || c.OnLink4 > 32 || c.OnLink6 > 128 || c.OnLink4 < 0 || c.OnLink6 < 0 {
			t.Errorf("%s passes as %+v", stdin, c)
		}
		if _, err := guard.ParseMode(string(c.Guard)); err != nil {
			t.Error(err)
		}
		if _, err := ParsePlace(stdin); err != nil {
			t.Errorf("what can be added cannot be taken away: %v", err)
		}
	})
}
