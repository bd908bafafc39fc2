package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/netns"
	"taskmeta/internal/port"
)

// forgetConf makes the bindings those of the first versions, which did not record the
// configuration of an ADD.
func (h *host) forgetConf(t *testing.T) {
	t.Helper()
	all, err := h.cfg.Bindings()
	if err != nil {
		t.Fatal(err)
	}
	var old []ecs.Binding
	for _, b := range all {
		c := *b
		c.Conf = nil
		old = append(old, c)
	}
	if _, err := bindingdb.Restore(t.Context(), h.db, old, bindingdb.Options{}); err != nil {
		t.Fatal(err)
	}
}

// nothing waits until nothing of ours is left in a namespace.
func nothing(t *testing.T, in *testnet.Namespace) {
	t.Helper()
	testnet.Await(t, "the place to be cleared", func() error {
		if left := in.Sh(t, `ip -o link | grep -E 'ecs-bridge|ecsv' || true; nft list tables`); left != "" {
			return errors.New(left)
		}
		return nil
	})
}

// keeper is another keeper of the host's endpoint, in a namespace of its own or on the host.
func (h *host) keeper(t *testing.T, pin string) *host {
	t.Helper()
	n := &host{Namespace: h.Namespace, place: h.Namespace, ns: h.cfg.Host, db: h.db, log: &buffer{}}
	cfg := h.cfg
	cfg.Pin, cfg.Netns, cfg.Logger = pin, h.cfg.Host, slog.New(slog.NewTextHandler(n.log, nil))
	if pin != "" {
		var err error
		if n.ns, err = netns.Pin(pin); err != nil {
			t.Fatal(err)
		}
		if n.place, err = testnet.Open(pin); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = errors.Join(n.ns.Close(), n.place.Close()) })
		cfg.Netns = n.ns
	}
	n.Keeper = New(cfg)
	socket, err := n.place.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	n.socket = socket
	n.sockets = append(n.sockets, socket)
	return n
}

// A host whose tasks were attached among its interfaces gets an endpoint of its own, and
// back: the ports are moved whole, and nothing is left.
func TestPortsAreMovedBothWays(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]bool{"as they are": false, "of a version that recorded less": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, guard.Strict)
			if err := h.Serve(h.sockets); err != nil {
				t.Fatal(err)
			}
			var tasks []*testnet.Namespace
			for i := range 3 {
				tasks = append(tasks, h.attach(t, fmt.Sprint("c", i), `, "ipv4-subnet": "10.9.0.0/24", "ipv4-gateway": "10.9.0.77"`))
			}
			if err := h.Ensure(); err != nil {
				t.Fatal(err)
			}
			if first {
				h.forgetConf(t)
			}
			var before []string
			for _, task := range tasks {
				before = append(before, task.Sh(t, ends))
			}
			ports := h.sh(t, things)
			h.socket.Close()

			pin := netns.PinPath(h.db)
			apart := h.keeper(t, pin)
			back := func() *host { return h.keeper(t, "") }
			for _, k := range []func() *host{func() *host { return apart }, back} {
				now := k()
				if err := now.Serve(now.sockets); err != nil {
					t.Fatal(err)
				}
				if got := now.sh(t, things); got != ports {
					t.Errorf("the ports are\n%s\nand were\n%s", got, ports)
				}
				for i, task := range tasks {
					if got := task.Sh(t, ends); got != before[i] {
						t.Errorf("task %d has\n%s\nand had\n%s", i, got, before[i])
					}
				}
				if n := now.log.count("ports were moved"); n != 1 || now.State().Repairs != 0 {
					t.Errorf("it was told %d times, as %d repairs", n, now.State().Repairs)
				}
				if err := now.whole(t); err != nil {
					t.Error(err)
				}
				if now == apart {
					nothing(t, h.Namespace)
					now.socket.Close()
				}
			}
			if _, err := netns.Pinned(pin); err == nil {
				t.Error("the pin is left")
			}
		})
	}
}

// A port that comes to the host while the endpoint stands apart is moved at once, as when a
// plugin has not seen the pin.
func TestAPortThatComesToTheHost(t *testing.T) {
	t.Parallel()
	h := newHostAt(t, guard.Strict, apart)
	h.run(t)
	task := testnet.T(t)
	if _, err := (testnet.Call{
		Program: filepath.Join(bin, "ecs-bridge"), Verb: "ADD", Container: "c1", Netns: task.Path(), Env: []string{"IPAM_DB_PATH=" + h.db},
		Conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge", "netns": "host", "ipam": {"type": "ecs-ipam"}}`,
	}).Run(t.Context(), h.Namespace); err != nil {
		t.Fatal(err)
	}
	// It asked for the host by name, so there it stays.
	if got := h.Sh(t, "ip -o link"); !strings.Contains(got, "ecsv") {
		t.Errorf("a port that was to be on the host is not: %s", got)
	}
	h.editConf(t, func(conf map[string]any) { delete(conf, "netns") })
	h.Sh(t, "ip link set lo alias poke; ip link set lo alias ''") // the host tells of a change
	testnet.Await(t, "the port to be moved", func() error {
		if got := h.sh(t, "ip -o link"); !strings.Contains(got, "ecsv") {
			return errors.New(got)
		}
		return nil
	})
	nothing(t, h.Namespace)
}

// editConf changes what the bindings recorded of their ADD.
func (h *host) editConf(t *testing.T, edit func(map[string]any)) {
	t.Helper()
	all, err := h.cfg.Bindings()
	if err != nil {
		t.Fatal(err)
	}
	var changed []ecs.Binding
	for _, b := range all {
		c := *b
		conf := make(map[string]any)
		if err := json.Unmarshal(c.Conf, &conf); err != nil {
			t.Fatal(err)
		}
		edit(conf)
		if c.Conf, err = json.Marshal(conf); err != nil {
			t.Fatal(err)
		}
		changed = append(changed, c)
	}
	if _, err := bindingdb.Restore(t.Context(), h.db, changed, bindingdb.Options{}); err != nil {
		t.Fatal(err)
	}
}

// The pin is made again wherever it went, and a port that was attached meanwhile is fetched:
// from the host, or from the namespace that was pinned in its place.
func TestThePinIsLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(pin string) error{
		"unmounted": netns.Unpin,
		"replaced by another": func(pin string) error {
			if err := netns.Unpin(pin); err != nil {
				return err
			}
			other, err := netns.Pin(pin)
			if err != nil {
				return err
			}
			return other.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostAt(t, guard.Strict, apart)
			if err := h.Serve(h.sockets); err != nil {
				t.Fatal(err)
			}
			h.attach(t, "c1", "")
			if err := lose(h.cfg.Pin); err != nil {
				t.Fatal(err)
			}
			h.attach(t, "c2", "") // where the plugin finds its place
			h.keep(t)
			testnet.Await(t, "both ports", func() error {
				if got := strings.Count(h.sh(t, "ip -o link show master ecs-bridge"), "ecsv"); got != 2 {
					return fmt.Errorf("there are %d", got)
				}
				if !h.isPinned() {
					return errors.New("the pin is not there")
				}
				return h.whole(t)
			})
			nothing(t, h.Namespace)
		})
	}
}

// A namespace that is lost with all that stood in it, as when its last process has ended, is
// made anew from the bindings.
func TestTheNamespaceIsLost(t *testing.T) {
	t.Parallel()
	h := newHostAt(t, guard.Strict, apart)
	if err := h.Serve(h.sockets); err != nil {
		t.Fatal(err)
	}
	task := h.attach(t, "c1", "")
	before := task.Sh(t, ends)
	h.socket.Close()
	if err := netns.Unpin(h.cfg.Pin); err != nil {
		t.Fatal(err)
	}
	// The old one may live on behind the task's interface, as here, where the test holds it.
	anew := h.keeper(t, h.cfg.Pin)
	if err := anew.Serve(anew.sockets); err != nil {
		t.Fatal(err)
	}
	if now := task.Sh(t, ends); now != before {
		t.Errorf("the task has\n%s\nand had\n%s", now, before)
	}
	if err := anew.whole(t); err != nil {
		t.Error(err)
	}
}

// What another resolver serves on stays, and so does an administrator's bridge.
func TestWhatIsNotOursIsNotCleared(t *testing.T) {
	t.Parallel()
	h := newHostAt(t, guard.Strict, apart)
	h.Sh(t, "ip link add name ecs-bridge address 02:00:00:00:00:07 type bridge; ip link set ecs-bridge up; ip address add 169.254.170.2/32 dev ecs-bridge; ip address add 10.1.0.1/24 dev ecs-bridge")
	other, err := h.Listen("tcp", "169.254.170.2:80")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Serve(h.sockets); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "ip -o address show dev ecs-bridge"); !strings.Contains(got, "169.254.170.2") {
		t.Errorf("a resolver's address was taken: %s", got)
	}
	other.Close()
	if err := h.Ensure(); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "ip -o address show dev ecs-bridge"); strings.Contains(got, "169.254.170.2") || !strings.Contains(got, "10.1.0.1") {
		t.Errorf("the bridge has %s", got)
	}
}

// A port at which somebody else is at work is left to them, and looked at again soon.
func TestAPortThatIsLocked(t *testing.T) {
	t.Parallel()
	h := newHostAt(t, guard.Strict, apart)
	h.run(t)
	h.attach(t, "c1", "")
	a := ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "eth0"}
	testnet.Await(t, "the port", func() error { return h.whole(t) })
	release, err := port.Lock(t.Context(), h.db, a)
	if err != nil {
		t.Fatal(err)
	}
	h.sh(t, "ip link set ecsvmh06gma3sir nomaster")
	h.sh(t, "ip link set dev lo txqueuelen 7") // another look
	if got := h.sh(t, "ip -o link show master ecs-bridge"); strings.Contains(got, "ecsv") {
		t.Errorf("it was mended: %s", got)
	}
	release()
	testnet.Await(t, "the port", func() error {
		if got := h.sh(t, "ip -o link show master ecs-bridge"); !strings.Contains(got, "ecsv") {
			return errors.New("it is no port")
		}
		return nil
	})
}

// What cannot be made whole is told once, named, and mended as soon as it can be; others are
// mended meanwhile.
func TestAPortThatCannotBeMended(t *testing.T) {
	t.Parallel()
	h := newHostAt(t, guard.Strict, apart)
	h.run(t)
	task := h.attach(t, "c1", "")
	h.attach(t, "c2", "")
	release, err := port.Lock(t.Context(), h.db, ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	task.Sh(t, "ip link del eth0; ip link add eth0 type veth peer name other")
	release()
	h.sh(t, "ip link set $(ip -o link show master ecs-bridge | grep -o 'ecsv[^@]*') nomaster")
	testnet.Await(t, "one broken, the other mended", func() error {
		broken := h.State().Broken
		if len(broken) != 1 || broken[0].Binding.Container != "c1" || !strings.Contains(broken[0].Err.Error(), "the interface name is taken in the task's namespace") {
			return fmt.Errorf("broken are %v", broken)
		}
		if got := h.sh(t, "ip -o link show master ecs-bridge"); !strings.Contains(got, "ecsv") {
			return errors.New("the other is no port")
		}
		return nil
	})
	task.Sh(t, "ip link del eth0")
	testnet.Await(t, "the port to be mended", func() error {
		if broken := h.State().Broken; len(broken) > 0 {
			return fmt.Errorf("broken are %v", broken)
		}
		return nil
	})
	if n := h.log.count("a task's port cannot be made whole"); n != 1 {
		t.Errorf("it was told %d times:\n%s", n, &h.log.text)
	}
}
