package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

// sandboxes are those of a result's interfaces.
func sandboxes(r *current.Result) (all []string) {
	for _, i := range r.Interfaces {
		all = append(all, i.Sandbox)
	}
	return all
}

// The bridge stands where the resolver has pinned its network namespace, beside the bindings
// file; the configuration can say otherwise. The result tells where.
func TestPlaceOfTheBridge(t *testing.T) {
	t.Parallel()
	elsewhere := filepath.Join(t.TempDir(), "another")
	pinAt(t, elsewhere)
	tests := map[string]struct {
		pinned bool
		key    string
		want   func(h *host) string // the sandbox, "" for the plugin's own network namespace
	}{
		"no pin":                {want: func(*host) string { return "" }},
		"a pin":                 {pinned: true, want: func(h *host) string { return netns.PinPath(h.db) }},
		"a pin, told the host":  {pinned: true, key: `"host"`, want: func(*host) string { return "" }},
		"a pin, told another":   {pinned: true, key: `"` + elsewhere + `"`, want: func(*host) string { return elsewhere }},
		"no pin, told another":  {key: `"` + elsewhere + `"`, want: func(*host) string { return elsewhere }},
		"no pin, told the host": {key: `"host"`, want: func(*host) string { return "" }},
		"a pin, an empty key":   {pinned: true, key: `""`, want: func(h *host) string { return netns.PinPath(h.db) }},
		"a pin, null for a key": {pinned: true, key: `null`, want: func(h *host) string { return netns.PinPath(h.db) }},
		"a file instead of a pin": {key: "", want: func(h *host) string {
			if err := os.WriteFile(netns.PinPath(h.db), nil, 0o600); err != nil {
				t.Error(err)
			}
			return ""
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h, task, network := newHost(t), testnet.T(t), conf()
			if test.pinned {
				h = newPinnedHost(t)
			}
			if test.key != "" {
				network = conf(`"netns": ` + test.key)
			}
			want := test.want(h)
			at := h.from()
			if want != "" {
				ns, err := testnet.Open(want)
				if err != nil {
					t.Fatal(err)
				}
				defer ns.Close()
				at = ns
			}
			before := h.things(t)
			result := h.must(t, "ADD", "c1", task.Path(), network)
			if diff := cmp.Diff([]string{want, want, task.Path()}, sandboxes(result)); diff != "" {
				t.Errorf("sandboxes (-want +got):\n%s", diff)
			}
			at.Sh(t, "ip link show "+vethOf("c1")+" | grep 'master ecs-bridge'")
			all, err := json.Marshal(result)
			if err != nil {
				t.Fatal(err)
			}
			h.must(t, "CHECK", "c1", task.Path(), strings.TrimSuffix(network, "}")+`, "prevResult": `+string(all)+`}`)
			h.must(t, "STATUS", "", "", network)
			h.must(t, "DEL", "c1", task.Path(), network)
			h.left(t, before)
			if ports := at.Sh(t, "bridge link show"); ports != "" {
				t.Errorf("left: %s", ports)
			}
		})
	}
}

// What is not there cannot be used; taking away goes on without it.
func TestPlaceThatIsMissing(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	for _, bad := range []string{`"/run/netns/none"`, `"/etc/passwd"`, `"here"`, `7`} {
		want := "netns is " + bad + `: expected "host", or the absolute path of a network namespace's mount`
		h.refused(t, "ADD", "c1", task.Path(), conf(`"netns": `+bad), types.ErrInvalidNetworkConfig, want)
		h.refused(t, "STATUS", "", "", conf(`"netns": `+bad), types.ErrInvalidNetworkConfig, want)
		h.left(t, before)
	}
	h.must(t, "ADD", "c1", task.Path(), conf())
	h.must(t, "ADD", "c2", testnet.T(t).Path(), conf())
	h.must(t, "DEL", "c1", task.Path(), conf(`"netns": "/run/netns/none"`))
	h.must(t, "GC", "", "", conf(`"netns": "/run/netns/none"`, `"cni.dev/valid-attachments": []`))
	h.left(t, before)
}

// The endpoint's network namespace is no task's.
func TestAddIsRefusedInTheEndpointsNamespace(t *testing.T) {
	t.Parallel()
	h := newPinnedHost(t)
	before := h.things(t)
	for _, path := range []string{h.Path(), netns.PinPath(h.db)} {
		h.refused(t, "ADD", "c1", path, conf(), types.ErrInvalidNetNS, "which is the endpoint's network namespace: expected the task's")
	}
	h.left(t, before)
}

// A change is what makes a port stand in another place than its configuration has it.
type change struct {
	added, after string // configurations
	pin          bool   // the namespace is pinned after the ADD, and was not before
	at           string // where the port then stands, and the bridge is expected
	expected     string
}

func changes() map[string]change {
	const own, pinned = "the plugin's own network namespace", "/netns"
	return map[string]change{
		"the resolver came later, or is an upgrade":  {added: conf(), after: conf(), pin: true, at: own, expected: pinned},
		"the configuration has come to say the host": {added: conf(), after: conf(`"netns": "host"`), at: pinned, expected: own},
		"the configuration said the host":            {added: conf(`"netns": "host"`), after: conf(), at: own, expected: pinned},
	}
}

// host is one on which the change has taken place, after the ADD.
func (c change) host(t *testing.T, task *testnet.Namespace) (h *host, checked string) {
	t.Helper()
	if c.pin {
		h = newHost(t)
	} else {
		h = newPinnedHost(t)
	}
	result := h.must(t, "ADD", "c1", task.Path(), c.added)
	if c.pin {
		h.runtime = h.Namespace
		h.Namespace = pinAt(t, netns.PinPath(h.db))
	}
	all, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	return h, strings.TrimSuffix(c.after, "}") + `, "prevResult": ` + string(all) + `}`
}

// gone fails the test if anything of an attachment is left in either place.
func gone(t *testing.T, h *host) {
	t.Helper()
	for _, s := range []things{h.things(t), *h.things(t).Runtime} {
		if s.Ports != "" || strings.Contains(s.Chains, "in-ecsv") || s.Neighbours != "" || len(s.Bindings) > 0 || strings.Contains(s.Links, "ecsv") {
			t.Errorf("left: %+v", s)
		}
	}
}

// A port that stands in another place is found there, and taken away with its guard.
func TestDelAndGCInTheOtherPlace(t *testing.T) {
	t.Parallel()
	for name, c := range changes() {
		for _, verb := range []string{"DEL", "DEL of what is partly gone", "GC"} {
			t.Run(name+", "+verb, func(t *testing.T) {
				t.Parallel()
				task := testnet.T(t)
				h, _ := c.host(t, task)
				switch verb {
				case "DEL of what is partly gone":
					for _, ns := range []*testnet.Namespace{h.Namespace, h.runtime} {
						ns.Sh(t, "ip link del "+vethOf("c1")+" || true") // chain, neighbour and binding stay
					}
					h.must(t, "DEL", "c1", "", c.after)
					h.must(t, "GC", "", "", strings.TrimSuffix(c.after, "}")+`, "cni.dev/valid-attachments": []}`)
				case "DEL":
					h.must(t, "DEL", "c1", task.Path(), c.after)
				case "GC":
					h.must(t, "GC", "", "", strings.TrimSuffix(c.after, "}")+`, "cni.dev/valid-attachments": []}`)
				}
				gone(t, h)
				h.must(t, "ADD", "c1", task.Path(), c.after)
				reach(t, h.bridge(t, c), task)
				h.must(t, "DEL", "c1", task.Path(), c.after)
				gone(t, h)
			})
		}
	}
}

// bridge is the host as it is for a bridge that stands where it is expected after a change.
func (h *host) bridge(t *testing.T, c change) *host {
	t.Helper()
	if c.expected == "/netns" {
		return h
	}
	return &host{Namespace: h.runtime, db: h.db, path: h.path}
}

// CHECK and STATUS tell of a port that stands in another place.
func TestCheckOfAPortInTheOtherPlace(t *testing.T) {
	t.Parallel()
	for name, c := range changes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			task := testnet.T(t)
			h, checked := c.host(t, task)
			place := func(name string) string {
				if name == "/netns" {
					return netns.PinPath(h.db)
				}
				return name
			}
			h.refused(t, "CHECK", "c1", task.Path(), checked, cniedge.CodeMismatch,
				"veth "+vethOf("c1")+" stands in "+place(c.at)+": expected in "+place(c.expected))
			h.refused(t, "STATUS", "", "", c.after, types.ErrLimitedConnectivity,
				"1 attachments of network ecs-task stand in "+place(c.at)+": expected in "+place(c.expected)+", where a resolver moves them while it runs")
			h.refused(t, "ADD", "c1", task.Path(), c.after, cniedge.CodeHeld, "has [169.254.172.2/22]")
			h.must(t, "DEL", "c1", task.Path(), c.after)
			h.must(t, "STATUS", "", "", c.after)
		})
	}
}
