package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// bin is where the programs are that the tests start.
var bin string

// programs are ecs-bridge, what it delegates to, the runtime, and what repairs the bindings.
var programs = []string{
	"taskmeta/plugins/ecs-bridge",
	"taskmeta/plugins/ecs-ipam",
	"taskmeta/resolver",
	"github.com/containernetworking/plugins/plugins/ipam/host-local",
	"github.com/containernetworking/plugins/plugins/main/bridge",
	"github.com/containernetworking/cni/cnitool",
}

func TestMain(m *testing.M) {
	testscript.Main(testnet.Programs{M: m, Packages: programs, Dir: &bin}, map[string]func(){"ecs-bridge": main})
}

// A host is a network namespace with a bindings file, where a runtime starts plugins.
type host struct {
	// The bridge stands here.
	*testnet.Namespace
	// runtime is where the runtime starts plugins, if not there.
	runtime *testnet.Namespace
	db      string
	// path is CNI_PATH.
	path string
	// endpoint is what tasks ask, once one has.
	endpoint net.Listener
}

func newHost(t testing.TB) *host {
	t.Helper()
	return &host{Namespace: testnet.T(t), db: filepath.Join(t.TempDir(), "bindings.db"), path: bin}
}

// newPinnedHost is a host on which the bridge stands in a network namespace of its own, that
// is pinned beside the bindings file.
func newPinnedHost(t testing.TB) *host {
	t.Helper()
	h := newHost(t)
	h.runtime = h.Namespace
	h.Namespace = pinAt(t, netns.PinPath(h.db))
	return h
}

// pinAt pins a new network namespace until the test ends.
func pinAt(t testing.TB, path string) *testnet.Namespace {
	t.Helper()
	t.Cleanup(func() {
		if err := netns.Unpin(path); err != nil {
			t.Error(err)
		}
	})
	ns, err := netns.Pin(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	n, err := testnet.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// onBoth runs a test on a host of either kind.
func onBoth(t *testing.T, test func(t *testing.T, h *host)) {
	t.Helper()
	for name, newHost := range map[string]func(testing.TB) *host{"bridge on the host": newHost, "bridge in a namespace of its own": newPinnedHost} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newHost(t))
		})
	}
}

// conf is a configuration with keys of its own, such as `"mtu": 1400`.
func conf(keys ...string) string {
	return `{` + strings.Join(append([]string{`"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge"`, `"ipam": {"type": "ecs-ipam"}`}, keys...), ", ") + `}`
}

// otherIPAM is conf with another IPAM plugin than ecs-ipam, which is built in.
func otherIPAM(keys ...string) string {
	return strings.Replace(conf(keys...), `"ecs-ipam"`, `"other-ipam"`, 1)
}

// call is one call of the plugin. An empty netns is none.
func (h *host) call(verb, container, netns, conf string) testnet.Call {
	return testnet.Call{
		Program: filepath.Join(bin, "ecs-bridge"), Path: h.path, Env: []string{"IPAM_DB_PATH=" + h.db},
		Verb: verb, Container: container, Netns: netns, Conf: conf,
	}
}

// run makes a call, as a runtime on this host does.
func (h *host) run(call testnet.Call) (*current.Result, error) {
	return call.Run(context.Background(), h.from())
}

// from is where the runtime starts plugins.
func (h *host) from() *testnet.Namespace {
	if h.runtime != nil {
		return h.runtime
	}
	return h.Namespace
}

// must calls the plugin and ends the test if it fails.
func (h *host) must(t testing.TB, verb, container, netns, conf string) *current.Result {
	t.Helper()
	result, err := h.run(h.call(verb, container, netns, conf))
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// refused calls the plugin, which has to answer with an error of that code and text.
func (h *host) refused(t testing.TB, verb, container, netns, conf string, code uint, text string) {
	t.Helper()
	_, err := h.run(h.call(verb, container, netns, conf))
	testnet.Refused(t, err, code, text)
}

// things is all that an attachment could leave on a host.
type things struct {
	Links, Neighbours, Chains, Ports string
	Bindings                         []ecs.Attachment
	Runtime                          *things // where the runtime is, if that is elsewhere
}

// things lists what there is, but for bridges.
func (h *host) things(t testing.TB) things {
	t.Helper()
	s := h.network(t)
	for _, b := range h.bindings(t) {
		s.Bindings = append(s.Bindings, b.Attachment)
	}
	return s
}

// network lists what there is beside bindings.
func (h *host) network(t testing.TB) things {
	t.Helper()
	s := network(t, h.Namespace)
	if h.runtime != nil {
		other := network(t, h.runtime)
		s.Runtime = &other
	}
	return s
}

func network(t testing.TB, h *testnet.Namespace) (s things) {
	t.Helper()
	s.Links = h.Sh(t, `(ip -o link; ip -o link show type bridge) | cut -d: -f2 | cut -d@ -f1 | sort | uniq -u`)
	s.Neighbours = h.Sh(t, `ip neigh show nud permanent`)
	s.Chains = h.Sh(t, `nft list chains netdev | grep chain || true`)
	s.Ports = h.Sh(t, `bridge link show`)
	return s
}

func (h *host) bindings(t testing.TB) []*ecs.Binding {
	t.Helper()
	r, err := bindingdb.NewReader(h.db, bindingdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return s.All()
}

// left fails the test if anything is on the host that was not there before.
func (h *host) left(t testing.TB, before things) {
	t.Helper()
	if diff := cmp.Diff(before, h.things(t)); diff != "" {
		t.Errorf("what is left (-before +after):\n%s", diff)
	}
}

// plugin puts a shell script into CNI_PATH, ahead of the programs.
func (h *host) plugin(t testing.TB, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	h.path = dir + ":" + h.path
}

// address is the first one of a result.
func address(t testing.TB, r *current.Result) string {
	t.Helper()
	if r == nil || len(r.IPs) == 0 {
		t.Fatalf("no address in %v", r)
	}
	return r.IPs[0].Address.String()
}

// reach asks the endpoint from inside a task.
func reach(t *testing.T, h *host, task *testnet.Namespace) {
	t.Helper()
	if h.endpoint == nil {
		// It stays, since the address would be in use for a moment after it is closed: each
		// program that is being started has a copy of the socket until it runs.
		l, err := h.Listen("tcp", "169.254.170.2:80")
		if err != nil {
			t.Fatal(err)
		}
		h.endpoint = l
		t.Cleanup(func() { l.Close() })
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	c, err := task.DialContext(ctx, "tcp", "169.254.170.2:80")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// vethOf is the name of the host's end of a container's eth0 in the usual network.
func vethOf(container string) string {
	return link.HostName(attachment(container))
}
