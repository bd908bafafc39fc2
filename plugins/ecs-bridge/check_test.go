package main

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
)

func TestCheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		onHost, inTask string
		code           uint
		want           string
	}{
		"the address":        {inTask: "ip addr flush dev eth0", code: cniedge.CodeMismatch, want: "eth0 lacks the address 169.254.172.2/22"},
		"the route":          {inTask: "ip route del 169.254.170.2", code: cniedge.CodeMismatch, want: "lacks the route 169.254.170.2/32 via 169.254.172.1"},
		"the task's MAC":     {inTask: "ip link set eth0 address 02:00:00:00:00:01", code: cniedge.CodeMismatch, want: "eth0 has the MAC 02:00:00:00:00:01"},
		"the veth":           {onHost: "ip link del " + vethOf("c1"), code: cniedge.CodeMismatch, want: "veth " + vethOf("c1") + " is missing"},
		"the veth is down":   {onHost: "ip link set " + vethOf("c1") + " down", code: cniedge.CodeMismatch, want: "veth " + vethOf("c1") + " is down"},
		"the bridge port":    {onHost: "ip link set " + vethOf("c1") + " nomaster", code: cniedge.CodeMismatch, want: "is not a port of ecs-bridge"},
		"the bridge":         {onHost: "ip link del ecs-bridge", code: cniedge.CodeMismatch, want: "ecs-bridge"},
		"the gateway":        {onHost: "ip addr del 169.254.172.1/22 dev ecs-bridge", code: cniedge.CodeMismatch, want: "bridge ecs-bridge lacks the address 169.254.172.1/22"},
		"the endpoint":       {onHost: "ip addr del 169.254.170.2/32 dev ecs-bridge", code: cniedge.CodeMismatch, want: "bridge ecs-bridge lacks the address 169.254.170.2/32"},
		"the guard's chain":  {onHost: "nft flush ruleset", code: cniedge.CodeMismatch, want: "chain"},
		"the port's setting": {onHost: "bridge link set dev " + vethOf("c1") + " isolated off", code: cniedge.CodeMismatch, want: "isolated"},
		"the neighbour":      {onHost: "ip neigh del 169.254.172.2 dev ecs-bridge", code: cniedge.CodeMismatch, want: "169.254.172.2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, task := newHost(t), testnet.T(t)
			result, err := json.Marshal(h.must(t, "ADD", "c1", task.Path(), conf()))
			if err != nil {
				t.Fatal(err)
			}
			checked := conf(`"prevResult": ` + string(result))
			h.must(t, "CHECK", "c1", task.Path(), checked)
			h.Sh(t, test.onHost)
			task.Sh(t, test.inTask)
			h.refused(t, "CHECK", "c1", task.Path(), checked, test.code, test.want)
		})
	}
}

func TestCheckPassesTheBindingOn(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	result, err := json.Marshal(h.must(t, "ADD", "c1", task.Path(), conf()))
	if err != nil {
		t.Fatal(err)
	}
	ipam := h.call("DEL", "c1", task.Path(), conf())
	ipam.Program = filepath.Join(bin, "ecs-ipam")
	if _, err := h.run(ipam); err != nil {
		t.Fatal(err)
	}
	h.refused(t, "CHECK", "c1", task.Path(), conf(`"prevResult": `+string(result)), cniedge.CodeMismatch, "no binding")
	h.refused(t, "CHECK", "c1", task.Path(), conf(), types.ErrInvalidNetworkConfig, "prevResult is missing")
}
