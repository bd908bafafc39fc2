package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/port"
)

// started is a script that is ecs-ipam as a program, for another IPAM plugin's name.
func started() string { return `exec ` + bin + `/ecs-ipam` }

// ecs-ipam is built into ecs-bridge: a program of that name is not started, or even needed.
func TestBuiltInIsNotStarted(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	for _, script := range []string{"exit 1", ""} {
		h.path = t.TempDir()
		if script != "" {
			h.plugin(t, "ecs-ipam", script)
		}
		h.must(t, "ADD", "c1", task.Path(), conf())
		h.must(t, "STATUS", "c1", task.Path(), conf())
		h.must(t, "DEL", "c1", task.Path(), conf())
		h.left(t, before)
	}
}

// Any other IPAM plugin is started.
func TestAnotherIPAMIsStarted(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	mark := filepath.Join(t.TempDir(), "started")
	h.plugin(t, "other-ipam", `echo "$CNI_COMMAND" >> `+mark+`; `+started())
	h.must(t, "ADD", "c1", task.Path(), otherIPAM())
	h.must(t, "DEL", "c1", task.Path(), otherIPAM())
	if got, err := os.ReadFile(mark); err != nil || string(got) != "ADD\nDEL\n" {
		t.Errorf("started for %q (%v), want ADD and DEL", got, err)
	}
}

// Built in or started, ecs-ipam answers the same.
func TestBuiltInAnswersTheSame(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		verb, conf string
		before     []string // verbs
	}{
		"an address":             {verb: "ADD", conf: conf()},
		"a result of CNI 0.3.1":  {verb: "ADD", conf: `{"cniVersion": "0.3.1", "name": "ecs-task", "ipam": {"type": "ecs-ipam"}}`},
		"held":                   {verb: "ADD", conf: conf(), before: []string{"ADD"}},
		"a bad key":              {verb: "ADD", conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.0.0.0"}}`},
		"STATUS with a bad key":  {verb: "STATUS", conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.0.0.0"}}`},
		"STATUS of a full pool":  {verb: "STATUS", conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.0.0.0/30"}}`, before: []string{"ADD"}},
		"GC with nothing listed": {verb: "GC", conf: conf(`"cni.dev/valid-attachments": []`), before: []string{"ADD"}},
		"DEL with a bad path":    {verb: "DEL", conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam", "db-path": 3}}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			task, db := testnet.T(t), filepath.Join(t.TempDir(), "bindings.db")
			answers := make(map[string]string)
			for _, way := range []string{"built in", "started"} {
				if err := os.RemoveAll(db); err != nil {
					t.Fatal(err)
				}
				h := newHost(t)
				h.db = db
				network := test.conf
				if way == "started" {
					h.plugin(t, "other-ipam", started())
					network = strings.Replace(network, `"ecs-ipam"`, `"other-ipam"`, 1)
				}
				for _, verb := range test.before {
					h.must(t, verb, "c1", task.Path(), network)
				}
				cmd := h.call(test.verb, "c1", task.Path(), network).Command(t.Context())
				var out bytes.Buffer
				cmd.Stdout = &out
				answers[way] = fmt.Sprint(h.Run(cmd), strings.ReplaceAll(out.String(), "other-ipam", "ecs-ipam"))
				h.must(t, "DEL", "c1", task.Path(), conf())
			}
			if answers["built in"] != answers["started"] {
				t.Errorf("built in it answers\n%s\nstarted\n%s", answers["built in"], answers["started"])
			}
		})
	}
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
		g, err := port.NewGrant(result)
		if err != nil {
			return
		}
		i := (&port.Config{OnLink4: 24, BlockIMDS: true}).Interface("eth0", g)
		for _, p := range append(i.Addrs, g.Gateways...) {
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
