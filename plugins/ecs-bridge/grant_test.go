package main

import (
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// Of the name servers of earlier plugins and of the IPAM plugin, the first stand.
func TestNameServersOfTheIPAMPlugin(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.plugin(t, "other-ipam", `[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.1.0", "dns": {"nameservers": ["10.9.0.53"]},
		"ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]}'`)
	tests := map[string]struct{ conf, want string }{
		"alone":                       {otherIPAM(), "10.9.0.53"},
		"after a plugin with none":    {otherIPAM(`"prevResult": {"cniVersion": "1.1.0"}`), "10.9.0.53"},
		"after a plugin with its own": {otherIPAM(`"prevResult": {"cniVersion": "1.1.0", "dns": {"nameservers": ["10.1.0.53"]}}`), "10.1.0.53"},
	}
	for name, test := range tests {
		task := testnet.T(t)
		result := h.must(t, "ADD", "c1", task.Path(), test.conf)
		if got := strings.Join(result.DNS.Nameservers, " "); got != test.want {
			t.Errorf("%s: name servers %s, want %s", name, got, test.want)
		}
		h.must(t, "DEL", "c1", task.Path(), test.conf)
	}
}

// Another IPAM plugin will do as well.
func TestHostLocalGivesTheAddress(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	local := `{"cniVersion": "1.0.0", "name": "ecs-task", "guard": "off",
		"ipam": {"type": "host-local", "dataDir": "` + t.TempDir() + `", "routes": [{"dst": "169.254.170.2/32"}],
			"ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]]}}`
	result := h.must(t, "ADD", "c1", task.Path(), local)
	if got := address(t, result); got != "10.66.0.2/24" || len(result.IPs) != 2 {
		t.Errorf("address %s of %v", got, result.IPs)
	}
	reach(t, h, task)
	h.must(t, "DEL", "c1", task.Path(), local)
	h.left(t, before)
}
