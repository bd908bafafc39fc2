package ipam

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/ecs"
)

func TestConfigErrorsNameKeyValueAndExpectation(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		ipam string
		want []string
	}{
		"no object":                   {`"ecs-ipam"`, []string{`ipam is "ecs-ipam"`, "an object"}},
		"a misspelt subnet":           {`{"ipv4-subent": "10.0.0.0/24"}`, []string{`ipam.ipv4-subent is "10.0.0.0/24"`, `"ipv4-subnet"`}},
		"a misspelt path":             {`{"db_path": "/run/x"}`, []string{"ipam.db_path", `"db-path"`}},
		"a key twice":                 {`{"id": "a", "ID": "b"}`, []string{"the key once"}},
		"a number for a subnet":       {`{"ipv4-subnet": 10}`, []string{"ipam.ipv4-subnet is 10", "an IPv4 subnet such as"}},
		"an empty subnet":             {`{"ipv4-subnet": ""}`, []string{`ipam.ipv4-subnet is ""`, "an IPv4 subnet such as"}},
		"a subnet of IPv6 for IPv4":   {`{"ipv4-subnet": "fd00::/64"}`, []string{"ipam.ipv4-subnet", "an IPv4 subnet"}},
		"a subnet without room":       {`{"ipv4-subnet": "10.0.0.0/31"}`, []string{"ipam.ipv4-subnet", "/30 is the smallest"}},
		"IPv6 without a subnet":       {`{"ipv6-gateway": "fd00::1"}`, []string{"ipam.ipv6-subnet is missing", "an IPv6 subnet such as"}},
		"a gateway elsewhere":         {`{"ipv4-gateway": "10.0.0.1"}`, []string{`ipam.ipv4-gateway is "10.0.0.1"`, `of 169.254.172.0/22, such as "169.254.172.1"`}},
		"the broadcast address":       {`{"ipv4-address": "169.254.175.255/22"}`, []string{"ipam.ipv4-address", `such as "169.254.172.2/22"`}},
		"an address that is gateway":  {`{"ipv4-address": "169.254.172.1/22"}`, []string{"ipam.ipv4-address", "not the gateway's"}},
		"an address without a length": {`{"ipv4-address": "169.254.172.9"}`, []string{`ipam.ipv4-address is "169.254.172.9"`, "with its length"}},
		"an address elsewhere":        {`{"ipv4-address": "10.0.0.2/24"}`, []string{"an address of 169.254.172.0/22"}},
		"routes that are no list":     {`{"ipv4-routes": {"dst": "0.0.0.0/0"}}`, []string{"ipam.ipv4-routes", "a list of IPv4 routes such as"}},
		"a route without destination": {`{"ipv4-routes": [{"gw": "169.254.172.1"}]}`, []string{"ipam.ipv4-routes", `"dst"`}},
		"a route of the other family": {`{"ipv4-routes": [{"dst": "::/0"}]}`, []string{"ipam.ipv4-routes"}},
		"an ID that is no string":     {`{"id": 7}`, []string{"ipam.id is 7", "Docker ID"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parseConfig(map[string]json.RawMessage{"ipam": json.RawMessage(test.ipam)})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not have %q", err, want)
				}
			}
			if got := code(t, err); got != 7 {
				t.Errorf("code %d, want 7", got)
			}
		})
	}
}

// code is the one that a runtime is given for err.
func code(t testing.TB, err error) uint {
	t.Helper()
	text, marshalErr := json.Marshal(cniedge.Error("ADD", err))
	var answer struct{ Code uint }
	if marshalErr != nil || json.Unmarshal(text, &answer) != nil {
		t.Fatal(marshalErr, string(text))
	}
	return answer.Code
}

func TestConfigOfFamilies(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		ipam           string
		subnets, gates string
		routes         int
	}{
		"none":                  {`{}`, "169.254.172.0/22", "169.254.172.1", 1},
		"a subnet of one's own": {`{"ipv4-subnet": "10.0.0.0/24"}`, "10.0.0.0/24", "10.0.0.1", 1},
		"no routes":             {`{"ipv4-routes": []}`, "169.254.172.0/22", "169.254.172.1", 0},
		"IPv6 alone":            {`{"ipv6-subnet": "fd00::/64"}`, "fd00::/64", "fd00::1", 0},
		"both":                  {`{"ipv6-subnet": "fd00::/64", "ipv4-gateway": "169.254.172.9"}`, "169.254.172.0/22 fd00::/64", "169.254.172.9 fd00::1", 1},
		"capital letters":       {`{"IPV4-Subnet": "10.0.0.0/24", "ID": "x"}`, "10.0.0.0/24", "10.0.0.1", 1},
		"other keys of AWS's":   {`{"cniVersion": "0.3.0", "connectedSubnetMaskSizeIPv4": 22}`, "169.254.172.0/22", "169.254.172.1", 1},
		"an empty gateway":      {`{"ipv4-gateway": "", "id": ""}`, "169.254.172.0/22", "169.254.172.1", 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := parseConfig(map[string]json.RawMessage{"ipam": json.RawMessage(test.ipam)})
			if err != nil {
				t.Fatal(err)
			}
			var subnets, gates []string
			routes := 0
			for _, a := range c.addresses {
				subnets = append(subnets, a.pool.Subnet.String())
				gates = append(gates, a.pool.Gateway.String())
				routes += len(a.routes)
			}
			if got := strings.Join(subnets, " "); got != test.subnets {
				t.Errorf("subnets %s, want %s", got, test.subnets)
			}
			if got := strings.Join(gates, " "); got != test.gates {
				t.Errorf("gateways %s, want %s", got, test.gates)
			}
			if routes != test.routes {
				t.Errorf("%d routes, want %d", routes, test.routes)
			}
		})
	}
}

// Whatever stands in a configuration, it is refused or yields pools whose addresses can be
// granted; and what DEL needs is found in all that ADD takes.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam"}}`,
		`{"name": "n", "ipam": {"ipv4-subnet": "10.0.0.0/24", "ipv4-address": "10.0.0.2/24", "ipv4-gateway": "10.0.0.1"}}`,
		`{"name": "n", "ipam": {"ipv6-subnet": "fd00::/64", "ipv6-routes": [{"dst": "::/0", "gw": "fd00::9"}], "id": "x"}}`,
		`{"name": "n", "ipam": {"ipv4-subnet": "::ffff:10.0.0.0/120"}}`,
		`{"ipam": null, "args": {"cni": {"labels": [{"key": "a", "value": "b"}]}}}`,
		`[]`, `{"ipam": {"type": 1}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		var conf map[string]json.RawMessage
		if json.Unmarshal(stdin, &conf) != nil {
			return
		}
		c, err := parseConfig(conf)
		if err != nil {
			return
		}
		place, err := parsePlace(conf)
		if err != nil || !reflect.DeepEqual(place, c.place) {
			t.Fatalf("ADD keeps its bindings at %v, DEL looks at %v, %v", c.place, place, err)
		}
		if len(c.addresses) == 0 {
			t.Fatal("neither IPv4 nor IPv6")
		}
		for _, a := range c.addresses {
			if a.addr.IsValid() && !a.pool.Grantable(a.addr.Addr()) {
				t.Fatalf("%s may not be granted of %v", a.addr, a.pool)
			}
			addr, err := a.pool.Next(netip.Addr{}, func(netip.Addr) bool { return false })
			if err != nil || !a.pool.Grantable(addr) || addr == ecs.EndpointAddr {
				t.Fatalf("%v grants %s, %v", a.pool, addr, err)
			}
			for _, r := range a.routes {
				if r.GW == nil {
					t.Fatalf("a route without a gateway: %v", r)
				}
			}
		}
	})
}
