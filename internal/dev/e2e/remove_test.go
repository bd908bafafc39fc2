package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// state is all of the host's network and of the folder of the bindings file that taskmeta
// could have changed.
func (h *host) state(t *testing.T) string {
	t.Helper()
	return h.sh(t, `ip -o link | cut -d: -f2 | cut -d@ -f1; ip -o addr | sed 's/^[0-9]*: *//'; ip neigh; ip rule; ip -6 rule
ip -4 route show table all; ip -6 route show table all | grep -v 'proto kernel' || true
nft list ruleset; mount | grep `+h.dir+` || true; find `+h.dir+` -not -name resolver.log -not -name '*.conflist'`)
}

// attachTask attaches a network namespace by the plugins to a bridge.
func (h *host) attachTask(t *testing.T, container, bridge, subnet string) {
	t.Helper()
	task := testnet.T(t)
	_, err := testnet.Call{
		Program: filepath.Join(bin, "ecs-bridge"), Verb: "ADD", Container: container, Netns: task.Path(),
		Conf: fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net-%s", "type": "ecs-bridge", "bridge": %[1]q, "ipam": {"type": "ecs-ipam", "db-path": %[2]q, "ipv4-subnet": %[3]q}}`, bridge, h.db(), subnet),
	}.Run(t.Context(), h.ns)
	if err != nil {
		t.Fatal(err)
	}
}

// After remove the host is as it was before: whether a resolver runs, has ended, or was
// killed, and wherever the bridge stands. Another removal finds nothing.
func TestRemove(t *testing.T) {
	t.Parallel()
	const (
		runs   = "a resolver that runs"
		ended  = "one that has ended"
		killed = "one that was killed"
		never  = "plugins alone"
	)
	for _, place := range []string{"own", "host"} {
		for _, resolver := range []string{runs, ended, killed, never} {
			t.Run(place+", "+resolver, func(t *testing.T) {
				t.Parallel()
				h := bareHost(t)
				h.sh(t, "ip link add br0 address 02:00:00:00:00:77 type bridge; ip link set br0 addrgenmode none up; ip addr add 192.0.2.1/24 dev br0; nft 'table inet mine { chain in { type filter hook input priority 0; accept; }; }'")
				before := h.state(t)
				var flags []string
				if place == "host" {
					flags = []string{"--netns", "host"}
				}
				if resolver != never {
					h.serve(t, flags...)
				}
				h.attachTask(t, "c1", "ecs-bridge", "169.254.172.0/22")
				h.attachTask(t, "c2", "ecs-bridge", "169.254.172.0/22")
				h.attachTask(t, "c3", "b2", "10.9.0.0/24")
				if place == "host" {
					h.attachTask(t, "c4", "br0", "10.8.0.0/24")
				}
				if resolver != never {
					h.mustRun(t, "", append([]string{"status"}, flags...)...)
				}
				var err error
				switch resolver {
				case ended:
					err = h.resolver.Stop()
				case killed:
					err = h.resolver.Kill()
				}
				if err != nil {
					t.Fatal(err)
				}
				told := h.mustRun(t, "removed bridge ecs-bridge\n", "remove", "--db", h.db())
				for _, want := range []string{"of c1/eth0 in network net-ecs-bridge", "of c3/eth0 in network net-b2", "removed bridge b2\n", "removed table netdev ecs_guard\n", "removed " + h.db() + "\n"} {
					if !strings.Contains(told, want) {
						t.Errorf("it does not say %q:\n%s", want, told)
					}
				}
				if (resolver == runs) != strings.Contains(told, "ending the resolver that runs as process") {
					t.Errorf("of the resolver it says:\n%s", told)
				}
				if after := h.state(t); after != before {
					t.Errorf("it was:\n%s\nit is:\n%s", before, after)
				}
				h.mustRun(t, "nothing to remove", "remove")
			})
		}
	}
}

// What is not taskmeta's stays, though it stands beside what is or looks alike.
func TestRemoveLeavesWhatIsOthers(t *testing.T) {
	t.Parallel()
	h := bareHost(t)
	results := filepath.Join(h.dir, "cni", "results")
	if err := os.MkdirAll(results, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"podman-c1-eth0": `{"kind":"cniCacheV1","config":"e30="}`, "notes": "mine"} {
		if err := os.WriteFile(filepath.Join(results, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.sh(t, "ip link add br0 type bridge; ip addr add 169.254.170.1/24 dev br0; ip link add ecsvother type veth peer name other; ip link set ecsvother alias 'taskmeta net c1 eth0 1 strict'; nft add table ip ecs_guard; nft add table inet ecs_guardian; ip rule add from 192.0.2.7 lookup 1692000001 priority 172")
	before := h.state(t)
	h.mustRun(t, "nothing to remove", "remove")
	if after := h.state(t); after != before {
		t.Errorf("it was:\n%s\nit is:\n%s", before, after)
	}
}
