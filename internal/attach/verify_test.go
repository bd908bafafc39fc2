package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// A container that lost its route while no resolver ran has it by the next; one of which the
// plugins say that something is missing, and no keeper mends it, is attached anew. If they
// say so right after their ADD, it is so once.
func TestWhatIsNotWholeIsAttachedAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(t)
	b, other := w.start(t, 1), w.start(t, 2)
	w.await(t, b, other)
	before := w.addrs()
	if err := w.resolver.Stop(); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("nsenter", "--net="+b.netns(), "ip", "route", "flush", "dev", IfName).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.serve(t)
	testnet.Await(t, "the route", func() error {
		out, err := exec.Command("nsenter", "--net="+b.netns(), "ip", "route", "get", "169.254.170.2").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	w.await(t, b, other)
	for _, id := range []string{b.ID, other.ID} { // the keeper has mended it meanwhile
		if got := w.addrs()[id]; got != before[id] {
			t.Errorf("%s had %s and has %s", id, before[id], got)
		}
	}

	if err := w.resolver.Stop(); err != nil {
		t.Error(err)
	}
	w.before(t, `if [ $CNI_COMMAND = CHECK ]; then echo '{"cniVersion": "1.1.0", "code": 103, "msg": "never right"}'; exit 1; fi`)
	w.serve(t)
	w.resolver.AwaitLog(t, "level=WARN", "is not whole", b.ID)
	w.resolver.AwaitLog(t, "level=WARN", "CHECK fails right after their ADD", "never right", other.ID)
	w.await(t, b, other)
	kept := w.addrs()
	w.docker.LoseEvents()
	if err := w.docker.Stop(); err != nil { // all are told of again
		t.Fatal(err)
	}
	if err := w.docker.Start(); err != nil {
		t.Fatal(err)
	}
	testnet.Await(t, "the daemon to be back", func() error {
		if n := strings.Count(w.resolver.Log(), "is connected"); n < 4 {
			return fmt.Errorf("connected %d times", n)
		}
		return nil
	})
	late := w.start(t, 3)
	w.await(t, b, other, late)
	for _, id := range []string{b.ID, other.ID} {
		if got := w.addrs()[id]; got != kept[id] {
			t.Errorf("%s had %s and has %s", id, kept[id], got)
		}
	}
}

// Host ends are looked for in both places that they may stand in.
func TestBothPlaces(t *testing.T) {
	t.Parallel()
	bridge, host, tasks := testnet.T(t), testnet.T(t), testnet.T(t)
	var places []*netns.NS
	for _, n := range []*testnet.Namespace{bridge, host} {
		ns, err := netns.Open(n.Path())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		places = append(places, ns)
	}
	if err := tasks.Start(exec.Command("sleep", "1000")); err != nil { // what is found is what a process is in
		t.Fatal(err)
	}
	dir := plugin(t)
	a, err := New(Config{Netns: places[0], Host: places[1], DB: filepath.Join(dir, "run", "bindings.db"), PluginPath: []string{dir}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for n, in := range []*testnet.Namespace{bridge, host} {
		id := fmt.Sprintf("%064d", n)
		name, ifname := link.HostName(key(id)), fmt.Sprintf("eth%d", n)
		in.Sh(t, fmt.Sprintf("ip link add %s type veth peer name %s", name, ifname))
		in.Sh(t, "ip link add ecs-bridge type bridge")
		in.Sh(t, fmt.Sprintf("ip link set %s master ecs-bridge alias 'taskmeta %s %s %s %d off'", name, BuiltinNetwork, id, IfName, bootclock.Now()))
		in.Sh(t, fmt.Sprintf("ip link set %s netns %s", ifname, tasks.Path()))
		tasks.Sh(t, fmt.Sprintf("ip link set %s up; ip address add 169.254.172.%d/22 dev %s", ifname, 7+n, ifname))
	}
	if err := a.restoreMissing(context.Background()); err != nil {
		t.Fatal(err)
	}
	s, err := a.bindings.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	own, err := netns.Identify(tasks.Path())
	if err != nil {
		t.Fatal(err)
	}
	all := s.All()
	if len(all) != 2 {
		veths, err := a.veths()
		t.Fatalf("%d bindings of %+v, %v", len(all), veths, err)
	}
	for n, b := range all {
		want := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("169.254.172.%d/22", 7+n))}
		if fmt.Sprint(b.Addrs) != fmt.Sprint(want) || b.NetnsID != own.Ino {
			t.Errorf("the binding in place %d is %+v", n, b)
		}
		left, err := a.remains(b.Attachment)
		if err != nil || left.veth == nil || left.bound == nil {
			t.Errorf("the remains in place %d are %+v, %v", n, left, err)
		}
	}
	if gone, err := a.gone(func(*ecs.Binding) bool { return true }); err != nil || len(gone) != 0 {
		t.Errorf("gone are %v, %v", gone, err)
	}
}

// Of a binding whose key is in use again by the time that it is freed, nothing is: neither
// the new address nor the new veth pair.
func TestCollectSparesWhatIsInUseAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.start(t, 1)
	w.mustRun(t, "169.254.172.", "attach", b.ID)
	w.restart(t, b)
	testnet.Await(t, "the kernel to remove the old veth pair", func() error {
		if w.veth(b) == nil {
			return errors.New("it is there")
		}
		return nil
	})
	// The plugin's DEL waits until the container has been attached anew.
	again := filepath.Join(w.dir, "again")
	w.before(t, `if [ $CNI_COMMAND = DEL ] && [ ! -e `+again+` ]; then
		touch `+again+`
		while ! [ -e `+again+`-done ]; do sleep 0.05; done
	fi`)
	collected := make(chan string)
	go func() {
		out, err := w.run("bindings", "gc")
		collected <- fmt.Sprint(out, err)
	}()
	testnet.Await(t, "gc's DEL", func() error { _, err := os.Stat(again); return err })
	// Another runtime does: it knows nothing of our lock.
	conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %q, "type": "ecs-bridge", "ipam": {"type": "ecs-ipam", "db-path": %q}}`, BuiltinNetwork, w.db())
	for _, verb := range []string{"DEL", "ADD"} {
		call := testnet.Call{Program: filepath.Join(bin, "ecs-bridge"), Verb: verb, Container: b.ID, IfName: IfName, Netns: b.netns(), Conf: conf}
		if _, err := call.Run(t.Context(), w.ns); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(again+"-done", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case out := <-collected:
		t.Log(out)
	case <-time.After(time.Minute):
		t.Fatal("gc does not end")
	}
	if err := w.attached(b); err != nil {
		t.Error(err)
	}
}
