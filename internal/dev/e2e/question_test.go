package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/dev/testnet/fakedocker"
)

// bareHost is a host whose Docker daemon is faked and has no container.
func bareHost(t *testing.T) *host {
	t.Helper()
	if testing.Short() {
		t.Skip("makes network namespaces")
	}
	daemon := fakedocker.T(t)
	daemon.Serve(t)
	return &host{ns: testnet.T(t), docker: &testnet.Daemon{Host: daemon.Host}, dir: t.TempDir()}
}

// sh runs a command line on the host.
func (h *host) sh(t *testing.T, line string) string {
	t.Helper()
	out, err := h.ns.Output(exec.Command("sh", "-ec", line))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// firewalls are those that hosts have, each as it cuts tasks off where the bridge stands
// among the host's interfaces.
var firewalls = map[string]struct{ set, named string }{
	"input drop, accepts by state": {
		"iptables-nft -A INPUT -m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT; iptables-nft -A INPUT -i lo -j ACCEPT; iptables-nft -P INPUT DROP",
		"table ip filter, chain INPUT (policy drop)"},
	"output drop, accepts what is established": {
		"iptables-nft -A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables-nft -A OUTPUT -o lo -j ACCEPT; iptables-nft -P OUTPUT DROP",
		"table ip filter, chain OUTPUT (policy drop)"},
	"Oracle Cloud's reject": {
		"iptables-nft -A OUTPUT -d 169.254.0.0/16 -j REJECT --reject-with icmp-port-unreachable",
		"table ip filter, chain OUTPUT"},
	"iptables-legacy, input drop": {
		"iptables-legacy -A INPUT -i lo -j ACCEPT; iptables-legacy -P INPUT DROP",
		"iptables-legacy, table filter"},
	"an nftables table with policy drop": {
		"nft 'table inet fw { chain in { type filter hook input priority 0; policy drop; ct state established,related,new accept; iif lo accept; }; }'",
		"table inet fw, chain in (policy drop)"},
	"firewalld's panic": {
		"nft 'table inet firewalld { chain raw_PREROUTING { type filter hook prerouting priority -290; policy drop; iif lo accept; }; chain filter_OUTPUT { type filter hook output priority 10; policy drop; oif lo accept; }; }'",
		"table inet firewalld, chain raw_PREROUTING (policy drop)"},
	"ufw's chains": {
		"iptables-nft -N ufw-before-input; iptables-nft -A ufw-before-input -i lo -j ACCEPT; iptables-nft -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-nft -A ufw-before-input -m conntrack --ctstate INVALID -j DROP; iptables-nft -A INPUT -j ufw-before-input; iptables-nft -P INPUT DROP",
		"table ip filter, chain INPUT (policy drop)"},
}

// Status asks the endpoint as a task does. With the bridge on the host a firewall that is in
// the way is found and named, and the two rules that it names help; in a namespace of the
// endpoint's own it is in nobody's way.
func TestQuestion(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"own", "host"} {
		for name, fw := range firewalls {
			t.Run(place+", "+name, func(t *testing.T) {
				t.Parallel()
				h := bareHost(t)
				var flags []string
				if place == "host" {
					flags = []string{"--netns", "host"}
				}
				h.serve(t, flags...)
				status := append([]string{"status"}, flags...)
				if line := lineOf(h.mustRun(t, "", status...), "question"); !strings.HasPrefix(line, "ok ") {
					t.Errorf("status says of a host without a firewall: %q", line)
				}
				h.sh(t, fw.set)
				out, err := h.command(status...)
				line := lineOf(out, "question")
				if place == "own" {
					if err != nil || !strings.HasPrefix(line, "ok ") {
						t.Errorf("status (%v) says %q", err, out)
					}
					return
				}
				if err == nil || !strings.HasPrefix(line, "WRONG") || !strings.Contains(line, "likely a firewall of this host") || !strings.Contains(line, fw.named) {
					t.Fatalf("status (%v) says of the question: %q; want %s", err, line, fw.named)
				}
				h.letPass(t, line, strings.Contains(fw.set, "legacy"))
				if h.leftovers(t) != "" {
					t.Errorf("probes are left over: %s", h.leftovers(t))
				}
			})
		}
	}
}

// letPass applies the rules that status names, in the firewall's own words where that is no
// iptables, and asks again.
func (h *host) letPass(t *testing.T, line string, legacy bool) {
	t.Helper()
	parts := strings.Split(line, "`")
	rules := []string{parts[1], parts[3]}
	for _, rule := range rules {
		if !strings.HasPrefix(rule, "iptables -I ") {
			t.Fatalf("status names no rule: %q", line)
		}
		if legacy {
			rule = strings.Replace(rule, "iptables", "iptables-legacy", 1)
		} else {
			rule = strings.Replace(rule, "iptables", "iptables-nft", 1)
		}
		h.sh(t, rule)
	}
	for _, own := range []string{"inet fw", "inet firewalld"} { // which iptables does not open
		if !strings.Contains(line, own) {
			continue
		}
		for chain := range strings.SplitSeq(h.sh(t, "nft list table "+own+" | sed -n 's/.*chain \\(.*\\) {/\\1/p'"), "\n") {
			h.sh(t, fmt.Sprintf("nft insert rule %s %s ip daddr 169.254.170.2 tcp dport 80 accept; nft insert rule %[1]s %[2]s ip saddr 169.254.170.2 tcp sport 80 accept", own, chain))
		}
	}
	h.mustRun(t, "a task is answered", "status", "--netns", "host")
}

// leftovers are what is left of questions.
func (h *host) leftovers(t *testing.T) string {
	t.Helper()
	var left string
	for line := range strings.Lines(h.mustRun(t, "", "bindings", "--json") + h.sh(t, "ip -d link show type veth")) {
		if strings.Contains(line, "taskmeta-probe") {
			left += line
		}
	}
	if cached, _ := filepath.Glob(filepath.Join(h.dir, "cni", "results", "*")); len(cached) > 0 {
		left += strings.Join(cached, "\n")
	}
	return left
}

// A question that is under way is no task: nobody counts it, and nobody frees it. Whatever
// ends it, what it has made goes: at once, or with the next question or clean-up if it was
// killed.
func TestQuestionThatIsEnded(t *testing.T) {
	t.Parallel()
	h := bareHost(t)
	h.serve(t, "--netns", "host")
	h.sh(t, firewalls["Oracle Cloud's reject"].set)
	for name, test := range map[string]struct {
		end  syscall.Signal
		free []string // the command that frees what is left, nil if nothing is
	}{
		"told to end":               {syscall.SIGTERM, nil},
		"killed, then a clean-up":   {syscall.SIGKILL, []string{"bindings", "gc", "--netns", "host"}},
		"killed, then another asks": {syscall.SIGKILL, []string{"status", "--netns", "host"}},
	} {
		t.Run(name, func(t *testing.T) {
			status := exec.Command(filepath.Join(bin, "ecs-resolver"), "status", "--netns", "host")
			status.Env = append(os.Environ(), "IPAM_DB_PATH="+h.db(), "DOCKER_HOST="+h.docker.Host)
			if err := h.ns.Start(status); err != nil {
				t.Fatal(err)
			}
			testnet.Await(t, "the question", func() error {
				if h.leftovers(t) == "" {
					return errors.New("nothing is attached")
				}
				return nil
			})
			h.mustRun(t, "nothing to free", "bindings", "gc", "--netns", "host")
			for path, want := range map[string]string{"/metrics": "\ntaskmeta_bindings 0\n", "/status.json": `"tasks":[]`, "/readyz": `"endpoint":"ok"`} {
				if _, body := h.admin(t, path); !strings.Contains(body, want) {
					t.Errorf("%s does not have %q while a question is asked", path, want)
				}
			}
			if err := status.Process.Signal(test.end); err != nil {
				t.Fatal(err)
			}
			_ = status.Wait() // it has failed
			if test.free == nil {
				if left := h.leftovers(t); left != "" {
					t.Errorf("left over: %s", left)
				}
				return
			}
			_, _ = h.command(test.free...) // status fails for the firewall
			testnet.Await(t, "what is left to go", func() error {
				if left := h.leftovers(t); left != "" {
					return errors.New(left)
				}
				return nil
			})
		})
	}
	if log := h.resolver.Log(); strings.Contains(log, `"level":"WARN"`) || strings.Contains(log, `"level":"ERROR"`) {
		t.Error("the resolver's log has a warning")
	}
}

// The host's table is looked at where there is one.
func TestGuardOnTheHost(t *testing.T) {
	t.Parallel()
	h := bareHost(t)
	h.serve(t, "--netns", "host")
	h.mustRun(t, "the host's table is whole (strict)", "status", "--netns", "host")
	out, err := h.command("status", "--netns", "host", "--guard=source")
	if line := lineOf(out, "guard"); err == nil || !strings.HasPrefix(line, "WRONG ") || !strings.Contains(line, "ecs-resolver serve --guard source") {
		t.Errorf("status (%v) says %q", err, line)
	}
}
