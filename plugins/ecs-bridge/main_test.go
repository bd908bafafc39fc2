package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
)

// The stories are told on a host of their own: $HOST and $TASK are network namespaces.
func TestScripts(t *testing.T) {
	testnet.Need(t)
	t.Parallel()
	scripts, err := filepath.Glob("../../testdata/script/bridge*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	testscript.Run(t, testscript.Params{Files: scripts, Setup: func(env *testscript.Env) error {
		for _, name := range []string{"HOST", "TASK"} {
			ns, err := testnet.New()
			if err != nil {
				return err
			}
			env.Defer(func() { ns.Close() })
			env.Setenv(name, ns.Path())
		}
		env.Setenv("CNI_PATH", bin)
		return nil
	}})
}

// A runtime's way: ADD, CHECK and DEL by cnitool, in every version of CNI.
func TestCnitoolInEveryVersion(t *testing.T) {
	t.Parallel()
	for _, version := range cniedge.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			h, task, dir := newHost(t), testnet.T(t), t.TempDir()
			network := strings.Replace(conf(), "1.1.0", version, 1)
			if err := os.WriteFile(filepath.Join(dir, "net.conf"), []byte(network), 0o600); err != nil {
				t.Fatal(err)
			}
			before := h.things(t)
			tool := func(verb string) string {
				return h.Sh(t, fmt.Sprintf("IPAM_DB_PATH=%s CNI_PATH=%s NETCONFPATH=%s %s/cnitool %s ecs-task %s", h.db, h.path, dir, bin, verb, task.Path()))
			}
			for _, want := range []string{"169.254.172.2", "169.254.172.3"} {
				var result struct {
					CNIVersion string `json:"cniVersion"`
				}
				out := tool("add")
				if err := json.Unmarshal([]byte(out), &result); err != nil || result.CNIVersion != version {
					t.Errorf("result of CNI %q, %v: %s", result.CNIVersion, err, out)
				}
				if got := task.Sh(t, `ip -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4`); got != want+"/22" {
					t.Errorf("eth0 has %q, want %s/22", got, want)
				}
				if version != "0.3.0" && version != "0.3.1" { // which have no CHECK
					tool("check")
				}
				tool("del")
				h.left(t, before)
				tool("del")
			}
		})
	}
}
