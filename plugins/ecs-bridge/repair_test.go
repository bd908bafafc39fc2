package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// attachments are those of a host, and the addresses they were given.
type attachments struct {
	h     *host
	all   []attached
	taken map[string]bool
}

type attached struct {
	container, conf string
	task            *testnet.Namespace
	result          *current.Result
}

// add attaches six containers by three configurations.
func (a *attachments) add(t *testing.T, prefix string) {
	t.Helper()
	confs := []string{
		conf(),
		`{"cniVersion": "1.1.0", "name": "dual", "guard": "source", "bridge": "dual-bridge",
			"ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.77.0.0/24", "ipv6-subnet": "fd77::/64"}}`,
		strings.Replace(conf(`"guard": "off"`, `"bridge": "plain"`), `"ecs-ipam"`, `"ecs-ipam", "ipv4-subnet": "10.78.0.0/24"`, 1),
	}
	for i := range 6 {
		one := attached{container: fmt.Sprint(prefix, i), conf: confs[i%len(confs)], task: testnet.T(t)}
		inhabit(t, one.task)
		one.result = a.h.must(t, "ADD", one.container, one.task.Path(), one.conf)
		for _, ip := range one.result.IPs {
			addr := ip.Address.IP.String()
			if a.taken[addr] {
				t.Errorf("%s was given twice", addr)
			}
			a.taken[addr] = true
		}
		a.all = append(a.all, one)
	}
}

// failDel has the DEL of an attachment fail for the damaged file, which stays as it is. The
// interface is gone then: only a binding could be left, and none is.
func (a *attachments) failDel(t *testing.T, i int) {
	t.Helper()
	broken, err := os.ReadFile(a.h.db)
	if err != nil {
		t.Fatal(err)
	}
	one := a.all[i]
	a.h.refused(t, "DEL", one.container, one.task.Path(), one.conf, cniedge.CodeDamaged, "run `ecs-resolver bindings repair`")
	if after, err := os.ReadFile(a.h.db); err != nil || !bytes.Equal(after, broken) {
		t.Errorf("the file was changed (%v)", err)
	}
	for _, ip := range one.result.IPs {
		delete(a.taken, ip.Address.IP.String())
	}
	a.all = slices.Delete(a.all, i, i+1)
}

// Attachments outlive the file that knows of them: with a file made anew from what stands
// in the namespaces they are as before.
func TestRepairOfADamagedFile(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(string) error{
		"cut":     func(path string) error { return os.Truncate(path, 10_000) },
		"zeroes":  func(path string) error { return os.WriteFile(path, make([]byte, 1<<15), 0o600) },
		"removed": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			before := h.things(t)
			those := attachments{h: h, taken: make(map[string]bool)}
			those.add(t, "c")
			// One task claims another's address: its port says better.
			those.all[0].task.Sh(t, "ip addr add 169.254.172.3/22 dev eth0; ip link set eth0 address 0a:58:a9:fe:ac:03; ip addr del 169.254.172.2/22 dev eth0")
			if err := damage(h.db); err != nil {
				t.Fatal(err)
			}
			if name != "removed" {
				those.failDel(t, 1)
			}
			out := h.repair(t)
			if want := fmt.Sprintf("was written anew with %d bindings", len(those.all)); !strings.Contains(out, want) {
				t.Errorf("repair says\n%s\nwant %s", out, want)
			}
			if again := h.repair(t); !strings.Contains(again, "nothing to do") {
				t.Errorf("a second repair says\n%s", again)
			}
			for _, a := range those.all[1:] {
				result, err := json.Marshal(a.result)
				if err != nil {
					t.Fatal(err)
				}
				h.must(t, "CHECK", a.container, a.task.Path(), strings.TrimSuffix(a.conf, "}")+`, "prevResult": `+string(result)+`}`)
			}
			if got := h.bindings(t)[0]; got.Container == "c0" && got.Addrs[0].Addr().String() != "169.254.172.2" {
				t.Errorf("the liar has %v", got.Addrs)
			}
			those.add(t, "d")
			for _, a := range those.all {
				h.must(t, "DEL", a.container, a.task.Path(), a.conf)
			}
			h.left(t, before)
		})
	}
}
