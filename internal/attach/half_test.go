package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/bootclock"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/link"
)

// cut holds the lock of the bindings file, has begin begin an ADD of the container, and when
// that has made the veth pair, kills it by end.
func (w *world) cut(t *testing.T, b *box, begin func(), end func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.db()), 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := bindingdb.Lock(context.Background(), w.db()+".lock", true)
	if err != nil {
		t.Fatal(err)
	}
	w.before(t, `[ $CNI_COMMAND = ADD ] && echo $$ >`+w.dir+`/pid`)
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		begin()
	}()
	testnet.Await(t, "the veth pair", func() error { return w.veth(b) })
	end()
	if err := lock.Close(); err != nil {
		t.Error(err)
	}
	<-begun
}

// kill ends the plugin whose ADD was begun last.
func (w *world) kill(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// free is nil if nothing is left of the container's attachment.
func (w *world) free(b *box) error {
	if w.veth(b) == nil {
		return errors.New("there is a veth pair")
	}
	if bound := w.bound()[b.ID]; bound != nil {
		return fmt.Errorf("bound to %v", bound.Addrs)
	}
	for _, dir := range []string{"adding", "results"} {
		if files, _ := filepath.Glob(filepath.Join(filepath.Dir(w.db()), "cni", dir, "*"+b.ID+"*")); len(files) > 0 {
			return fmt.Errorf("there is %v", files)
		}
	}
	return nil
}

// An ADD whose plugin is killed half-way, or its caller, is put right by each of those who
// attach, detach, and collect.
func TestAnAddIsCutShort(t *testing.T) {
	t.Parallel()
	type test struct {
		cut, right func(*testing.T, *world, *box)
		attached   bool
	}
	byHand := func(t *testing.T, w *world, b *box) {
		w.cut(t, b, func() {
			if out, err := w.run("attach", b.ID); err == nil {
				t.Errorf("attach succeeded: %s", out)
			}
		}, func() { w.kill(t) })
	}
	byCommand := func(t *testing.T, w *world, b *box) {
		cmd := exec.Command(filepath.Join(bin, "ecs-resolver"), append([]string{"attach", b.ID}, w.flags()...)...)
		started := make(chan struct{})
		w.cut(t, b, func() {
			err := w.ns.Start(cmd)
			close(started)
			if err == nil {
				err = cmd.Wait()
			}
			if err == nil {
				t.Error("attach succeeded")
			}
		}, func() {
			<-started
			_ = cmd.Process.Kill() // it may have ended before
		})
	}
	tests := map[string]test{
		"the plugin of attach, and attach": {byHand, func(t *testing.T, w *world, b *box) {
			if out := w.mustRun(t, "169.254.172.", "attach", b.ID); strings.Contains(out, "already") {
				t.Errorf("attach says %s", out)
			}
		}, true},
		"attach, and attach": {byCommand, func(t *testing.T, w *world, b *box) { w.mustRun(t, "169.254.172.", "attach", b.ID) }, true},
		"attach, and detach": {byCommand, func(t *testing.T, w *world, b *box) {
			w.mustRun(t, "what was left of an attempt is removed", "detach", b.ID)
			w.mustRun(t, "nothing to do", "detach", b.ID)
		}, false},
		"attach, and gc": {byCommand, func(t *testing.T, w *world, b *box) {
			w.mustRun(t, "removed what was left of "+b.ID, "bindings", "gc")
			w.mustRun(t, "nothing to free", "bindings", "gc")
		}, false},
		"attach, and a resolver": {byCommand, func(t *testing.T, w *world, b *box) { w.serve(t) }, true},
		"attach of one that is gone then, and a resolver": {byCommand, func(t *testing.T, w *world, b *box) {
			w.docker.Forget(b.ID)
			w.serve(t)
		}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			b := w.start(t, 1)
			test.cut(t, w, b)
			test.right(t, w, b)
			if test.attached {
				w.await(t, b)
			} else {
				testnet.Await(t, "nothing to be left", func() error { return w.free(b) })
			}
		})
	}
}

// The same while a resolver runs: its plugin is killed, or the resolver itself.
func TestAutoAttachIsCutShort(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]func(*testing.T, *world){
		"the plugin":   func(t *testing.T, w *world) { w.kill(t) },
		"the resolver": func(t *testing.T, w *world) { _ = w.resolver.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.serve(t)
			first := w.start(t, 0)
			w.await(t, first)
			b := w.make(t, 1)
			w.cut(t, b, func() { w.publish(b) }, func() { killed(t, w) })
			if name == "the resolver" {
				w.serve(t)
			}
			w.await(t, first, b)
		})
	}
}

// A plugin that comes after ours in the chain and fails is called again, and what was done
// before it is undone first.
func TestAChainThatFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.chain(t)
	b := w.start(t, 1)
	broken := filepath.Join(w.dir, "broken")
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	network := []string{"--network", "mine", "--net-dir", w.dir}
	for range 2 {
		if out, err := w.run(append([]string{"attach", b.ID}, network...)...); err == nil || !strings.Contains(out, "out of order") {
			t.Fatalf("attach with a broken chain (%v): %s", err, out)
		}
		if len(w.bound()) > 0 {
			t.Errorf("bound to %v", w.addrs())
		}
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if out := w.mustRun(t, "169.254.172.", append([]string{"attach", b.ID}, network...)...); strings.Contains(out, "already") {
		t.Errorf("attach says %s", out)
	}
	w.mustRun(t, "attached already", append([]string{"attach", b.ID}, network...)...)
	// What the second plugin did is lost: its CHECK says so.
	if err := os.Remove(filepath.Join(w.dir, "second-"+b.ID)); err != nil {
		t.Fatal(err)
	}
	if out := w.mustRun(t, "169.254.172.", append([]string{"attach", b.ID}, network...)...); strings.Contains(out, "already") {
		t.Errorf("attach says %s", out)
	}
	w.mustRun(t, "attached already", append([]string{"attach", b.ID}, network...)...)
	w.mustRun(t, "is free", append([]string{"detach", b.ID}, network...)...)
	if _, err := os.Stat(filepath.Join(w.dir, "second-"+b.ID)); err == nil {
		t.Error("the second plugin was not asked to undo its part")
	}
}

// chain configures a network "mine" with a second plugin, which keeps a file of each
// attachment and fails while there is a file "broken".
func (w *world) chain(t *testing.T) {
	t.Helper()
	script := `#!/bin/sh
state=` + w.dir + `/second-$CNI_CONTAINERID
fail() { echo "{\"cniVersion\": \"1.1.0\", \"code\": 999, \"msg\": \"$1\"}"; exit 1; }
case $CNI_COMMAND in
ADD) [ -e ` + w.dir + `/broken ] && fail "out of order"; echo >$state; sed 's/.*"prevResult"://; s/,"type":"second"}$//';;
DEL) rm -f $state;;
CHECK) [ -e $state ] || fail "its part is missing";;
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}';;
esac
`
	conf := `{"cniVersion": "1.1.0", "name": "mine", "plugins": [
		{"type": "ecs-bridge", "ipam": {"type": "ecs-ipam"}}, {"type": "second"}]}`
	for path, text := range map[string]string{"second": script, "mine.conflist": conf} {
		if err := os.WriteFile(filepath.Join(w.dir, path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// What is missing in the task's namespace is no "attached already".
func TestAlreadyMeansWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.start(t, 1)
	w.mustRun(t, "169.254.172.", "attach", b.ID)
	for _, what := range []string{
		"ip route flush dev ecs-eth0", "ip link set ecs-eth0 down", "ip address flush dev ecs-eth0", "ip link del ecs-eth0",
	} {
		w.mustRun(t, "attached already", "attach", b.ID)
		if out, err := exec.Command("nsenter", append([]string{"--net=" + b.netns()}, strings.Fields(what)...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		if out := w.mustRun(t, "169.254.172.", "attach", b.ID); strings.Contains(out, "already") {
			t.Errorf("after %s: attach says %s", what, out)
		}
		w.await(t, b)
	}
	w.mustRun(t, "is free", "detach", b.ID)
	w.mustRun(t, "nothing to do", "detach", b.ID)
}

// Of a network that another runtime attaches to, a veth without a binding is removed once its
// ADD must be over.
func TestCollectSparesOtherRuntimes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.start(t, 1)
	if err := os.MkdirAll(filepath.Dir(w.db()), 0o700); err != nil {
		t.Fatal(err)
	}
	other := key(b.ID)
	other.Network = "other"
	name := link.HostName(other)
	alias := func(since time.Duration) string {
		return fmt.Sprintf("taskmeta other %s %s %d strict", b.ID, IfName, since)
	}
	w.ns.Sh(t, fmt.Sprintf("ip link add %s type veth peer name ecs-eth0 netns %d", name, b.State.Pid))
	w.ns.Sh(t, fmt.Sprintf("ip link add ecs-bridge type bridge; ip link set %s master ecs-bridge alias '%s'", name, alias(bootclock.Now())))
	w.mustRun(t, "nothing to free", "bindings", "gc")
	w.ns.Sh(t, fmt.Sprintf("ip link set %s alias '%s'", name, alias(bootclock.Now()-2*time.Minute)))
	w.mustRun(t, "removed what was left of "+b.ID, "bindings", "gc")
	if w.link(name) == nil {
		t.Error("the veth is there")
	}
}
