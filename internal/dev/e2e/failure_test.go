package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/dev/testnet"
)

func TestWithoutABindingNothingIsTold(t *testing.T) {
	h := newHost(t)
	h.serve(t, "--listen", "127.0.0.1:51679", "--bridge", "none", "--witness", "off")
	if status, body, err := h.ns.Ask(t.Context(), "http://127.0.0.1:51679/v2/metadata"); err != nil || status != http.StatusForbidden {
		t.Errorf("a process of the host got %d %s (%v); want 403", status, body, err)
	}
}

func TestAnAttachmentThatEndedIsForgottenAtOnce(t *testing.T) {
	h := newHost(t)
	h.serve(t)
	web := h.task(t, "web")
	first := web.attach(t)
	var got taskReply
	h.ask(t, web.pause, "GET", "/v2/metadata").decode(t, &got)
	web.detach(t)
	web.detach(t)
	if r, err := h.tryAsk(web.pause, "GET", "/v2/metadata"); err == nil {
		t.Errorf("after DEL the task got %d %s; want no answer", r.StatusCode, r.body)
	}
	if second := web.attach(t); second == first {
		t.Errorf("the second ADD gave %s again at once", second)
	}
	h.ask(t, web.pause, "GET", "/v2/metadata").decode(t, &got)
}

// An interface that is gone, by whatever hand, ends the connections that came by it: nothing
// that was sent on them may reach who is given the address next.
func TestConnectionsEndWithTheirInterface(t *testing.T) {
	h := newHost(t)
	h.serve(t)
	web := h.task(t, "web")
	web.attach(t)
	ns, err := testnet.Open(web.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	transport := &http.Transport{DialContext: ns.DialContext}
	defer transport.CloseIdleConnections()
	if status, body, err := testnet.Get(t.Context(), transport, url("/v2/metadata")); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s %v", status, body, err)
	}
	const established = "ss --tcp --numeric --no-header state established sport = :80"
	place := h.place(t)
	if out := place.Sh(t, established); out == "" {
		t.Fatal("the connection was not kept")
	}
	// Without its task the port is not made anew.
	if _, err := h.docker.CLI("rm", "--force", web.pause); err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	place.Sh(t, "ip link delete $(ip -oneline link show type veth | cut -d: -f2 | cut -d@ -f1) 2>/dev/null || true")
	testnet.Await(t, "the connection to end", func() error {
		if out := place.Sh(t, established); out != "" {
			return errors.New(out)
		}
		return nil
	})
}

// A port whose chain somebody has removed is guarded again in its own mode, whatever the
// resolver's, and one that was not guarded is not.
func TestEachPortIsGuardedAgainAsItWas(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.serve(t, "--guard", "strict")
	for _, mode := range []string{"strict", "source", "off"} {
		k := h.task(t, mode)
		k.guard = mode
		k.keys = map[string]any{"ipv4-routes": []map[string]string{
			{"dst": "169.254.170.2/32"}, {"dst": "10.77.0.0/16", "gw": "169.254.172.77"},
		}}
		k.attach(t)
	}
	place := h.place(t)
	rules := func() []string {
		lines := strings.Split(place.Sh(t, "nft --stateless list table netdev ecs_guard 2>&1 || true"), "\n")
		slices.Sort(lines) // the chains stand in the order in which they were made
		return lines
	}
	before := rules()
	chains := 0
	for _, line := range before {
		if strings.Contains(line, "chain in-") {
			chains++
		}
	}
	if chains != 2 {
		t.Fatalf("%d ports are guarded, want 2:\n%s", chains, strings.Join(before, "\n"))
	}
	if _, metrics := h.admin(t, "/metrics"); !strings.Contains(metrics, "\ntaskmeta_guard_repairs_total 0\n") {
		t.Error("a network that came was counted as a repair")
	}
	place.Sh(t, "nft flush ruleset")
	testnet.Await(t, "the guard", func() error {
		if diff := cmp.Diff(before, rules()); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// The resolver takes the ECS agent's place on a host that keeps the agent's DNAT rule.
func TestBehindTheAgentsRule(t *testing.T) {
	h := newHost(t)
	h.serve(t, "--listen", "127.0.0.1:51679", "--bridge", "none")
	web := h.task(t, "web")
	web.attach(t)
	h.ns.Sh(t, "iptables -t nat -A PREROUTING -p tcp -d 169.254.170.2 --dport 80 -j DNAT --to-destination 127.0.0.1:51679")
	h.ns.Sh(t, "sysctl -q net.ipv4.conf.ecs-bridge.route_localnet=1")
	var got taskReply
	h.ask(t, web.pause, "GET", "/v2/metadata").decode(t, &got)
	if got.TaskARN != web.arn {
		t.Errorf("the task is told %+v", got)
	}
}

func TestTheDaemonGoesAndComesBack(t *testing.T) {
	h := newHost(t)
	known, unknown := h.task(t, "known"), h.task(t, "unknown")
	known.attach(t)
	if err := h.docker.Stop(); err != nil {
		t.Fatal(err)
	}
	unknown.attach(t)
	h.start(t, "/healthz")
	r := unknown.ask(t, "GET", "/v2/metadata")
	r.fails(t, http.StatusServiceUnavailable, "DockerUnavailable")
	if r.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	h.mustSay(t, http.StatusServiceUnavailable, "Docker")

	if err := h.docker.Start(); err != nil {
		t.Fatal(err)
	}
	h.mustSay(t, http.StatusOK, "")
	var got taskReply
	for _, k := range []*task{known, unknown} {
		k.ask(t, "GET", "/v2/metadata").decode(t, &got)
		if got.TaskARN != k.arn {
			t.Errorf("%s is told %+v", k.name, got)
		}
	}

	if err := h.docker.Stop(); err != nil {
		t.Fatal(err)
	}
	h.mustSay(t, http.StatusServiceUnavailable, "Docker")
	r = known.ask(t, "GET", "/v2/metadata")
	r.decode(t, &got)
	if got.TaskARN != known.arn || r.Header.Get("Age") == "" {
		t.Errorf("without the daemon %s is told %+v with Age %q", known.name, got, r.Header.Get("Age"))
	}
	if err := h.docker.Start(); err != nil {
		t.Fatal(err)
	}
	h.mustSay(t, http.StatusOK, "")
}

// mustSay waits until /readyz answers with the status, and a text that names the part.
func (h *host) mustSay(t *testing.T, status int, part string) {
	t.Helper()
	testnet.Await(t, "the resolver's readiness", func() error {
		if got, body := h.admin(t, "/readyz"); got != status || !strings.Contains(body, part) {
			return fmt.Errorf("/readyz says %d %s; want %d and %q", got, body, status, part)
		}
		return nil
	})
}
