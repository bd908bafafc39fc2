package attach

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// bin is where TestMain puts the programs.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run())
	}
	os.Exit(testnet.Programs{M: m, Dir: &bin, Packages: []string{
		"taskmeta/plugins/ecs-ipam",
		"taskmeta/plugins/ecs-bridge",
		"taskmeta/resolver",
	}}.Run())
}

// A world is a host with the real programs and a faked Docker daemon, whose containers are
// processes in network namespaces of their own.
type world struct {
	ns       *testnet.Namespace
	docker   *fakedocker.Daemon
	dir      string // holds the bindings file and plugins that stand before the real ones
	resolver *testnet.Resolver
	bindings *bindingdb.Reader
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the programs")
	}
	w := &world{ns: testnet.T(t), docker: fakedocker.T(t), dir: t.TempDir()}
	w.docker.Serve(t)
	var err error
	if w.bindings, err = bindingdb.NewReader(w.db(), bindingdb.Options{}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) db() string { return filepath.Join(w.dir, "run", "bindings.db") }

// serve starts a resolver, which attaches what has a task's label.
func (w *world) serve(t *testing.T, more ...string) {
	t.Helper()
	w.resolver = &testnet.Resolver{
		Host: w.ns, Program: filepath.Join(bin, "ecs-resolver"), LogFile: filepath.Join(w.dir, "resolver.log"),
		Args: append([]string{"serve", "--auto-attach", "--log-format", "text"}, w.flags(more...)...),
	}
	w.resolver.Serve(t, "/healthz")
}

func (w *world) flags(more ...string) []string {
	return append([]string{"--db", w.db(), "--docker-host", w.docker.Host, "--cni-path", w.dir + ":" + bin}, more...)
}

// run runs a command of ecs-resolver.
func (w *world) run(words ...string) (string, error) {
	flags := w.flags()
	return w.ns.Output(exec.Command(filepath.Join(bin, "ecs-resolver"), append(words, flags...)...))
}

func (w *world) mustRun(t *testing.T, want string, words ...string) string {
	t.Helper()
	out, err := w.run(words...)
	if err != nil || !strings.Contains(out, want) {
		t.Fatalf("%s (%v) says %q, want %q", strings.Join(words, " "), err, out, want)
	}
	return out
}

// A box is a container.
type box struct {
	*container.InspectResponse
	process *exec.Cmd
}

// boot starts the container's process.
func (w *world) boot(t *testing.T, b *box) {
	t.Helper()
	b.process = exec.Command("sleep", "1000")
	b.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := b.process.Start(); err != nil {
		t.Fatal(err)
	}
	process := b.process
	t.Cleanup(func() { reap(process) })
	state, base := *b.State, *b.ContainerJSONBase
	state.Pid = process.Process.Pid
	base.State = &state
	b.InspectResponse = &container.InspectResponse{ContainerJSONBase: &base, Config: b.Config}
}

func reap(process *exec.Cmd) {
	_ = process.Process.Kill() // it may have ended before
	_ = process.Wait()
}

// make makes a new container that runs, of which Docker does not know.
func (w *world) make(t *testing.T, n int) *box {
	t.Helper()
	b := &box{InspectResponse: fakedocker.Container(n, "", fmt.Sprintf("%s-%d", arn, n))}
	w.boot(t, b)
	return b
}

// publish has Docker know the container, and tell of its start.
func (w *world) publish(b *box) { w.docker.Put(events.ActionStart, b.InspectResponse) }

// start starts a new container, with an event.
func (w *world) start(t *testing.T, n int) *box {
	t.Helper()
	b := w.make(t, n)
	w.publish(b)
	return b
}

// restart gives the container a new process, without an event.
func (w *world) restart(t *testing.T, b *box) {
	t.Helper()
	reap(b.process)
	w.boot(t, b)
	w.docker.Keep(b.InspectResponse)
}

func (b *box) netns() string { return netns.Path(b.State.Pid) }

// attached is nil if the container is attached, and the resolver would know it.
func (w *world) attached(b *box) error {
	has, err := link.Addresses(b.netns())
	if err != nil {
		return err
	}
	if len(has) != 1 || has[0].IfName != IfName {
		return fmt.Errorf("%s has the addresses %v", b.Name, has)
	}
	bound := w.bound()[b.ID]
	if bound == nil || !bound.Has(has[0].Addr()) {
		return fmt.Errorf("%s has %v and is bound to %v", b.Name, has, bound)
	}
	return w.veth(b)
}

// veth is nil if there is the host's end of the container's pair: on the host, or in the
// network namespace that a resolver has made.
func (w *world) veth(b *box) error {
	return w.link(link.HostName(key(b.ID)))
}

func (w *world) link(name string) error {
	_, err := w.ns.Output(exec.Command("ip", "link", "show", name))
	if err != nil {
		out, e := exec.Command("nsenter", "--net="+netns.PinPath(w.db()), "ip", "link", "show", name).CombinedOutput()
		if e == nil {
			return nil
		}
		err = fmt.Errorf("%w; %s", err, out)
	}
	return err
}

func (w *world) await(t *testing.T, boxes ...*box) {
	t.Helper()
	for _, b := range boxes {
		testnet.Await(t, b.Name+" to be attached", func() error { return w.attached(b) })
	}
}

func key(id string) ecs.Attachment {
	return ecs.Attachment{Network: BuiltinNetwork, Container: id, IfName: IfName}
}

// bound are the bindings by container; none if the file can't be read.
func (w *world) bound() map[string]*ecs.Binding {
	s, err := w.bindings.Snapshot()
	if err != nil {
		return nil
	}
	all := make(map[string]*ecs.Binding)
	for _, b := range s.All() {
		all[b.Container] = b
	}
	return all
}

// addrs are the addresses by container.
func (w *world) addrs() map[string]string {
	all := make(map[string]string)
	for id, b := range w.bound() {
		all[id] = b.Addrs[0].Addr().String()
	}
	return all
}

// before puts a program in the place of ecs-bridge: lines of the shell, and then the plugin.
func (w *world) before(t *testing.T, lines string) {
	t.Helper()
	script := "#!/bin/sh\n" + lines + "\nexec " + bin + "/ecs-bridge\n"
	temp := filepath.Join(w.dir, "new")
	if err := os.WriteFile(temp, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(w.dir, "ecs-bridge")); err != nil {
		t.Fatal(err)
	}
}
