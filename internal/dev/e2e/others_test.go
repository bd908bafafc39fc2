package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// Another Docker network has our addresses, and a container on it the endpoint's: that is
// asked, there and from the host, as if we were not there, and so is the host from there. A
// task asks the endpoint all the same.
func TestAnotherNetworkHasOurAddresses(t *testing.T) {
	const asked = 20
	for _, mode := range []string{"strict", "source", "off"} {
		for _, calls := range []string{"1", "0"} {
			t.Run(fmt.Sprintf("guard %s, bridge-nf-call-iptables %s", mode, calls), func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				h.ns.Sh(t, fmt.Sprintf("f=/proc/sys/net/bridge/bridge-nf-call-iptables; test ! -e $f || echo %s >$f", calls))
				h.serve(t, "--netns", "host", "--guard", mode, "--rate", "0")
				web := h.task(t, "web")
				web.guard = mode
				web.attach(t)
				for subnet, at := range map[string]string{"169.254.170.0/24": "169.254.170.2", "169.254.172.0/22": "169.254.172.9"} {
					name := strings.ReplaceAll(at, ".", "-")
					gateway := at[:strings.LastIndex(at, ".")] + ".1"
					for _, args := range [][]string{
						{"network", "create", "--subnet", subnet, "net-" + name},
						{"run", "--detach", "--name", "server-" + name, "--network", "net-" + name, "--ip", at, image, "/bin/sh", "-c", "echo theirs >/index.html; exec httpd -f -h /"},
						{"run", "--detach", "--name", "client-" + name, "--network", "net-" + name, image, "/bin/sleep", "1000"},
					} {
						if _, err := h.docker.CLI(args...); err != nil {
							t.Fatal(err)
						}
					}
					h.answers(t, gateway+":8080")
					testnet.Await(t, "the container", func() error {
						if _, body, err := h.ns.Ask(t.Context(), "http://"+at+"/"); err != nil || body != "theirs\n" {
							return fmt.Errorf("the host is answered %q, %v", body, err)
						}
						return nil
					})
					for range asked {
						if _, body, err := h.ns.Ask(t.Context(), "http://"+at+"/"); err != nil || body != "theirs\n" {
							t.Errorf("the host is answered %q, %v", body, err)
						}
					}
					loop := fmt.Sprintf("for i in $(busybox seq %d); do wget -qO- http://$0/; done", asked)
					for url, want := range map[string]string{at: "theirs\n", gateway + ":8080": "the host\n"} {
						if out, err := h.docker.CLI("exec", "client-"+name, "/bin/busybox", "sh", "-c", loop, url); err != nil || strings.Count(out+"\n", want) != asked {
							t.Errorf("a neighbour asks %s %d times, and is answered %q, %v", url, asked, out, err)
						}
					}
				}
				for range asked {
					web.isKnown(t)
				}
			})
		}
	}
}

// isKnown checks that the task is told its own name.
func (k *task) isKnown(t *testing.T) {
	t.Helper()
	if r := k.ask(t, "GET", "/v2/metadata"); r.StatusCode != http.StatusOK || !strings.Contains(r.body, k.arn) {
		t.Errorf("the task is answered %d %s", r.StatusCode, r.body)
	}
}

// answers has the host answer at an address of its own.
func (h *host) answers(t *testing.T, at string) {
	t.Helper()
	l, err := h.ns.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the host") })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

// Two resolvers on the host's own network, each on 169.254.170.2:80 of a bridge of its own,
// answer every request of their tasks, and leave each other's table and routes alone.
func TestTwoResolversOnOneHost(t *testing.T) {
	requests := testnet.Soak(1_000, 10_000)
	h := newHost(t)
	args := []string{"--netns", "host", "--docker-host", h.docker.Host, "--rate", "0"}
	bridges := map[string]*task{"ecs-bridge": nil, "b-2": nil}
	var resolvers []*testnet.Resolver
	admin := 51680
	for bridge := range bridges {
		dir := t.TempDir()
		r := &testnet.Resolver{
			Host: h.ns, Program: filepath.Join(bin, "ecs-resolver"), LogFile: filepath.Join(dir, "resolver.log"),
			Args: append([]string{"--bridge", bridge, "--db", filepath.Join(dir, "bindings.db"), "--admin", fmt.Sprintf("127.0.0.1:%d", admin)}, args...),
		}
		admin--
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Stop(); err != nil {
				t.Error(err)
			}
		})
		resolvers = append(resolvers, r)
		k := h.task(t, "on-"+bridge)
		if _, err := (testnet.Call{
			Program: filepath.Join(bin, "ecs-bridge"), Verb: "ADD", Container: k.pause, Netns: k.netns, Env: []string{"IPAM_DB_PATH=" + filepath.Join(dir, "bindings.db")},
			Conf: fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge", "bridge": %q, "ipam": {"type": "ecs-ipam"}}`, bridge),
		}).Run(t.Context(), h.ns); err != nil {
			t.Fatal(err)
		}
		bridges[bridge] = k
	}
	var clients sync.WaitGroup
	for bridge, k := range bridges {
		ns, err := testnet.Open(k.netns)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		get := func() error {
			status, body, err := ns.Ask(context.Background(), "http://169.254.170.2/v2/metadata")
			if err != nil || status != http.StatusOK || !strings.Contains(body, k.arn) {
				return fmt.Errorf("%d %s, %w", status, body, err)
			}
			return nil
		}
		testnet.Await(t, "the answer on "+bridge, get)
		clients.Go(func() { loseNone(t, bridge, requests, get) })
	}
	clients.Wait()
	for _, r := range resolvers {
		if log := r.Log(); strings.Contains(log, "made whole again") {
			t.Errorf("a resolver repairs:\n%s", log)
		}
	}
	if tables := h.ns.Sh(t, "nft list tables"); !strings.Contains(tables+"\n", "inet ecs_guard\n") || !strings.Contains(tables+"\n", "inet ecs_guard_b-2\n") {
		t.Errorf("the tables are %s", tables)
	}
}

// Behind the agent's rule, a resolver without a bridge takes the table of an earlier run
// away, which took the packets past the rule.
func TestTheAgentsRuleAfterADefaultRun(t *testing.T) {
	h := newHost(t)
	h.serve(t, "--netns", "host")
	web := h.task(t, "web")
	web.attach(t)
	web.isKnown(t)
	if err := h.resolver.Stop(); err != nil {
		t.Fatal(err)
	}
	h.ns.Sh(t, `echo 1 >/proc/sys/net/ipv4/conf/ecs-bridge/route_localnet
		nft 'add table ip agent; add chain ip agent pre { type nat hook prerouting priority dstnat; }; add rule ip agent pre ip daddr 169.254.170.2 tcp dport 80 dnat to 127.0.0.1:51679'`)
	h.serve(t, "--bridge", "none", "--listen", net.JoinHostPort("127.0.0.1", "51679"))
	web.isKnown(t)
}

// loseNone makes so many requests on a bridge, none of which may be lost.
func loseNone(t *testing.T, bridge string, requests int, get func() error) {
	lost := 0
	for range requests {
		if err := get(); err != nil {
			if lost++; lost < 5 {
				t.Errorf("on %s: %v", bridge, err)
			}
		}
	}
	if lost > 0 {
		t.Errorf("on %s, %d of %d requests are lost", bridge, lost, requests)
	}
}
