// Package e2e tests the programs as their users meet them: the plugins called by cnitool,
// the resolver beside a real Docker daemon, and a client that asks from inside a
// container, all on a host of their own.
package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

// bin is where TestMain puts the programs.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run()) // every test here needs a Docker daemon, and skips
	}
	os.Exit(testnet.Programs{M: m, Dir: &bin, Packages: []string{
		"taskmeta/plugins/ecs-ipam",
		"taskmeta/plugins/ecs-bridge",
		"taskmeta/resolver",
		"github.com/containernetworking/cni/cnitool",
		"taskmeta/internal/dev/e2e/probe",
	}}.Run())
}

// A host is a machine of a test's own, with a Docker daemon.
type host struct {
	ns       *testnet.Namespace
	docker   *testnet.Daemon
	resolver *testnet.Resolver // once it was started
	dir      string
}

const image = "taskmeta-e2e"

func newHost(t *testing.T) *host {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Docker daemon")
	}
	ns := testnet.T(t)
	h := &host{ns: ns, docker: testnet.Docker(t, ns), dir: t.TempDir()}
	if err := h.docker.ImportBusybox(image, map[string]string{"/probe": filepath.Join(bin, "probe")}, "EXPOSE 80", "EXPOSE 53/udp"); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) db() string { return filepath.Join(h.dir, "bindings.db") }

// serve starts ecs-resolver on the host and waits until it says that it is ready.
func (h *host) serve(t *testing.T, args ...string) {
	t.Helper()
	h.start(t, "/readyz", append([]string{"--log-level", "debug"}, args...)...)
}

// start starts ecs-resolver on the host and waits until a path of its admin listener
// answers with status 200. At the end of the test it must end well.
func (h *host) start(t *testing.T, path string, args ...string) {
	t.Helper()
	h.resolver = &testnet.Resolver{
		Host: h.ns, Program: filepath.Join(bin, "ecs-resolver"), LogFile: filepath.Join(h.dir, "resolver.log"),
		Args: append([]string{"--db", h.db(), "--docker-host", h.docker.Host}, args...),
	}
	h.resolver.Serve(t, path)
}

// place opens the network namespace that the endpoint of a resolver that runs stands in.
func (h *host) place(t *testing.T) *testnet.Namespace {
	t.Helper()
	place, err := testnet.Open(netns.PinPath(h.db()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = place.Close() })
	return place
}

// admin asks the resolver's admin listener, from the host.
func (h *host) admin(t *testing.T, path string) (status int, body string) {
	t.Helper()
	status, body, err := h.ns.Ask(context.Background(), "http://127.0.0.1:51680"+path)
	if err != nil {
		return 0, err.Error()
	}
	return status, body
}

// A task is a pause container with a network namespace of its own, and what shares it.
type task struct {
	h      *host
	name   string
	arn    string
	pause  string // the pause container's ID
	netns  string
	conf   string         // the network's name
	subnet string         // "" for the default
	keys   map[string]any // further keys of ipam
	guard  string         // "" for the default
}

// task makes a task with a pause container that carries the labels of one.
func (h *host) task(t *testing.T, name string) *task {
	t.Helper()
	k := &task{h: h, name: name, conf: "net-" + name,
		arn: "arn:aws:ecs:us-west-2:123456789012:task/default/" + name}
	k.pause = h.docker.Run(t, append(k.labels("~internal~ecs~pause"),
		"--name", name+"-pause", "--network", "none", image, "/probe", "wait")...)
	k.netns = "/proc/" + h.docker.Pid(t, k.pause) + "/ns/net"
	return k
}

func (k *task) labels(container string) []string {
	return []string{
		"--label", "com.amazonaws.ecs.task-arn=" + k.arn,
		"--label", "com.amazonaws.ecs.cluster=default",
		"--label", "com.amazonaws.ecs.task-definition-family=" + k.name,
		"--label", "com.amazonaws.ecs.task-definition-version=7",
		"--label", "com.amazonaws.ecs.container-name=" + container,
	}
}

// member starts a container in the task; more are further words of `docker run`.
func (k *task) member(t *testing.T, container string, more ...string) string {
	t.Helper()
	args := append(k.labels(container), "--name", k.name+"-"+container, "--network", "container:"+k.pause)
	args = append(args, more...)
	return k.h.docker.Run(t, append(args, image, "/probe", "wait")...)
}

// cni calls the plugins by cnitool. What cnitool prints is the result or the error.
func (k *task) cni(verb string, env ...string) (string, error) {
	ipam := map[string]any{"type": "ecs-ipam", "id": k.pause, "db-path": k.h.db()}
	if k.subnet != "" {
		ipam["ipv4-subnet"] = k.subnet
	}
	maps.Copy(ipam, k.keys)
	bridge := map[string]any{"type": "ecs-bridge", "ipam": ipam}
	if k.guard != "" {
		bridge["guard"] = k.guard
	}
	conf := map[string]any{"cniVersion": "1.1.0", "name": k.conf, "plugins": []any{bridge}}
	text, err := json.Marshal(conf)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(k.h.dir, "conf", k.conf) // of its own: cnitool reads every file beside the one it wants
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, k.conf+".conflist"), text, 0o644); err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(bin, "cnitool"), verb, k.conf, k.netns)
	cmd.Env = append(os.Environ(), append(env, "NETCONFPATH="+dir, "CNI_PATH="+bin)...)
	return k.h.ns.Output(cmd)
}

// attach is the CNI ADD of the task; it returns the address given.
func (k *task) attach(t *testing.T, env ...string) string {
	t.Helper()
	t.Cleanup(func() { // cnitool keeps something of what is attached
		if _, err := k.cni("del"); err != nil {
			t.Errorf("DEL of %s at the end: %v", k.name, err)
		}
	})
	out, err := k.cni("add", env...)
	if err != nil {
		t.Fatalf("ADD of %s: %v", k.name, err)
	}
	var result struct {
		IPs []struct{ Address string }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.IPs) != 1 {
		t.Fatalf("ADD of %s answered %s (%v); want one address", k.name, out, err)
	}
	address, _, _ := strings.Cut(result.IPs[0].Address, "/")
	return address
}

// detach is the CNI DEL of the task.
func (k *task) detach(t *testing.T) {
	t.Helper()
	if _, err := k.cni("del"); err != nil {
		t.Fatalf("DEL of %s: %v", k.name, err)
	}
}

// A reply is what a client inside a container got.
type reply struct {
	*http.Response
	body string
}

// ask sends one request from inside a container.
func (h *host) ask(t *testing.T, container, method, path string, headers ...string) reply {
	t.Helper()
	r, err := h.tryAsk(container, method, path, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (h *host) tryAsk(container, method, path string, headers ...string) (reply, error) {
	out, err := h.docker.CLI(append([]string{"exec", container, "/probe", method, url(path)}, headers...)...)
	if err != nil {
		return reply{}, err
	}
	return readReply(method, out)
}

// ask sends one request from the task's network namespace without the help of a Docker
// daemon.
func (k *task) ask(t *testing.T, method, path string) reply {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+k.netns, filepath.Join(bin, "probe"), method, url(path)).Output()
	if err != nil {
		t.Fatalf("asking from the namespace of %s: %v", k.name, err)
	}
	r, err := readReply(method, string(out))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func url(path string) string { return "http://169.254.170.2" + path }

// readReply reads what probe printed, of which the docker command's caller may have cut
// the last newline off.
func readReply(method, out string) (reply, error) {
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(out+"\n")), &http.Request{Method: method})
	if err != nil {
		return reply{}, fmt.Errorf("reading the reply %q: %w", out, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{}, err
	}
	return reply{resp, string(body)}, nil
}

// fails checks that a reply is the JSON error of that status and code.
func (r reply) fails(t *testing.T, status int, code string) {
	t.Helper()
	var e struct{ Code, Message string }
	err := json.Unmarshal([]byte(r.body), &e)
	if r.StatusCode != status || err != nil || e.Code != code || e.Message == "" {
		t.Errorf("got %d %s; want %d with code %s and a message", r.StatusCode, r.body, status, code)
	}
}

// decode reads a reply with status 200 into v, which has a field for every key.
func (r reply) decode(t *testing.T, v any) {
	t.Helper()
	if r.StatusCode != http.StatusOK {
		t.Fatalf("got %d %s; want 200", r.StatusCode, r.body)
	}
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q; want application/json", got)
	}
	dec := json.NewDecoder(strings.NewReader(r.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("decoding %s: %v", r.body, err)
	}
}
