package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
)

// repair runs `ecs-resolver bindings repair` on the host.
func (h *host) repair(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "ecs-resolver"), "bindings", "repair", "--db", h.db)
	out, err := h.Output(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// inhabit keeps a process in the namespace, as a task has one: by it the namespace is found.
func inhabit(t *testing.T, ns *testnet.Namespace) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
}

// Attachments outlive the file that knows of them: with a file made anew from what stands
// in the namespaces they are as before.
func TestRepairOfADamagedFile(t *testing.T) {
	t.Parallel()
	dual := `{"cniVersion": "1.1.0", "name": "dual", "guard": "source", "bridge": "dual-bridge",
		"ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.77.0.0/24", "ipv6-subnet": "fd77::/64"}}`
	off := strings.Replace(conf(`"guard": "off"`, `"bridge": "plain"`), `"ecs-ipam"`, `"ecs-ipam", "ipv4-subnet": "10.78.0.0/24"`, 1)
	confs := []string{conf(), dual, off}
	for name, damage := range map[string]func(string) error{
		"cut":     func(path string) error { return os.Truncate(path, 10_000) },
		"zeroes":  func(path string) error { return os.WriteFile(path, make([]byte, 1<<15), 0o600) },
		"removed": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			before := h.things(t)
			type attached struct {
				container, conf string
				task            *testnet.Namespace
				result          *current.Result
			}
			var all []attached
			taken := make(map[string]bool)
			add := func(container, conf string) {
				t.Helper()
				task := testnet.T(t)
				inhabit(t, task)
				result := h.must(t, "ADD", container, task.Path(), conf)
				for _, ip := range result.IPs {
					addr := ip.Address.IP.String()
					if taken[addr] {
						t.Errorf("%s was given twice", addr)
					}
					taken[addr] = true
				}
				all = append(all, attached{container, conf, task, result})
			}
			for i := range 6 {
				add(fmt.Sprintf("c%d", i), confs[i%len(confs)])
			}
			// One task claims another's address: its port says better.
			all[0].task.Sh(t, "ip addr add 169.254.172.3/22 dev eth0; ip link set eth0 address 0a:58:a9:fe:ac:03; ip addr del 169.254.172.2/22 dev eth0")
			if err := damage(h.db); err != nil {
				t.Fatal(err)
			}
			if name != "removed" {
				broken, err := os.ReadFile(h.db)
				if err != nil {
					t.Fatal(err)
				}
				h.refused(t, "DEL", "c1", all[1].task.Path(), all[1].conf, cniedge.CodeDamaged, "run `ecs-resolver bindings repair`")
				if after, err := os.ReadFile(h.db); err != nil || !bytes.Equal(after, broken) {
					t.Errorf("the file was changed (%v)", err)
				}
				// The failed DEL has taken its interface away: only a binding could be left, and none is.
				for _, ip := range all[1].result.IPs {
					delete(taken, ip.Address.IP.String())
				}
				all = append(all[:1], all[2:]...)
			}
			out := h.repair(t)
			if want := fmt.Sprintf("was written anew with %d bindings", len(all)); !strings.Contains(out, want) {
				t.Errorf("repair says\n%s\nwant %s", out, want)
			}
			if again := h.repair(t); !strings.Contains(again, "nothing to do") {
				t.Errorf("a second repair says\n%s", again)
			}
			for _, a := range all[1:] {
				result, err := json.Marshal(a.result)
				if err != nil {
					t.Fatal(err)
				}
				h.must(t, "CHECK", a.container, a.task.Path(), strings.TrimSuffix(a.conf, "}")+`, "prevResult": `+string(result)+`}`)
			}
			if got := h.bindings(t)[0]; got.Container == "c0" && got.Addrs[0].Addr().String() != "169.254.172.2" {
				t.Errorf("the liar has %v", got.Addrs)
			}
			for i := range 6 {
				add(fmt.Sprintf("d%d", i), confs[i%len(confs)])
			}
			for _, a := range all {
				h.must(t, "DEL", a.container, a.task.Path(), a.conf)
			}
			h.left(t, before)
		})
	}
}
