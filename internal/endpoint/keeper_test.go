package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

var bin string

func TestMain(m *testing.M) {
	os.Exit(testnet.Programs{M: m, Packages: []string{"taskmeta/plugins/ecs-bridge"}, Dir: &bin}.Run())
}

// A buffer is a log that is read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), s)
}

// A host is a test host with an endpoint. The test itself is in another namespace.
type host struct {
	*testnet.Namespace                    // the host's
	place              *testnet.Namespace // the endpoint's, which may be the same
	*Keeper
	ns     *netns.NS // the endpoint's
	db     string
	socket net.Listener
	log    *buffer

	mu   sync.Mutex
	gone []ecs.Attachment // whose connections were to be closed, at the last check
}

func newHost(t testing.TB, mode guard.Mode) *host { return newHostAt(t, mode, onHost) }

// Where an endpoint stands.
const (
	onHost = false
	apart  = true // in a namespace of its own
)

func newHostAt(t testing.TB, mode guard.Mode, apart bool) *host {
	t.Helper()
	h := &host{Namespace: testnet.T(t), db: filepath.Join(t.TempDir(), "bindings.db"), log: &buffer{}}
	own, err := netns.Open(h.Path())
	if err != nil {
		t.Fatal(err)
	}
	h.place, h.ns = h.Namespace, own
	pin := ""
	if apart {
		pin = netns.PinPath(h.db)
		if h.ns, err = netns.Pin(pin); err != nil {
			t.Fatal(err)
		}
		if h.place, err = testnet.Open(pin); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := errors.Join(own.Close(), netns.Unpin(netns.PinPath(h.db))); err != nil {
			t.Error(err)
		}
		if apart {
			_ = errors.Join(h.ns.Close(), h.place.Close())
		}
	})
	if h.socket, err = h.place.Listen("tcp", ":80"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.socket.Close() })
	reader, err := bindingdb.NewReader(h.db, bindingdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	bindings := func() ([]*ecs.Binding, error) {
		s, err := reader.Snapshot()
		if err != nil {
			return nil, err
		}
		return s.All(), nil
	}
	h.Keeper = New(Config{
		Netns: h.ns, Host: own, Pin: pin, Bridge: "ecs-bridge", Guard: mode, DB: h.db, Bindings: bindings,
		Logger: slog.New(slog.NewTextHandler(h.log, nil)),
		CloseEnded: func(gone func(*ecs.Binding) bool) {
			all, err := bindings()
			if err != nil {
				t.Error(err)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.gone = nil
			for _, b := range all {
				if gone(b) {
					h.gone = append(h.gone, b.Attachment)
				}
			}
		},
	})
	h.sockets = []net.Listener{h.socket}
	return h
}

// run makes the endpoint, and keeps it until the test ends.
func (h *host) run(t *testing.T) {
	t.Helper()
	if err := h.Ensure(); err != nil {
		t.Fatal(err)
	}
	h.keep(t)
}

func (h *host) keep(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Keeper.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
}

// attach attaches a task of a namespace of its own.
func (h *host) attach(t *testing.T, container, keys string) (task *testnet.Namespace) {
	t.Helper()
	task = testnet.T(t)
	_, err := testnet.Call{
		Program: filepath.Join(bin, "ecs-bridge"), Verb: "ADD", Container: container, Netns: task.Path(), Env: []string{"IPAM_DB_PATH=" + h.db},
		Conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge", "ipam": {"type": "ecs-ipam"` + keys + `}}`,
	}.Run(t.Context(), h.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// sh runs a command line where the endpoint stands and returns what it prints.
func (h *host) sh(t *testing.T, line string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("sh", "-ec", line)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.place.Run(cmd); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, &out)
	}
	return out.String()
}

// boundTo is the index of the interface that the socket is bound to.
func (h *host) boundTo(t *testing.T) int {
	t.Helper()
	raw, err := h.socket.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var index int
	var failed error
	err = raw.Control(func(fd uintptr) { index, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return index
}

// whole says what of the endpoint is not as it should be.
func (h *host) whole(t *testing.T) error {
	links, err := link.Open(h.ns)
	if err != nil {
		return err
	}
	defer links.Close()
	b, err := links.Bridge("ecs-bridge")
	if err != nil {
		return err
	}
	if !b.Up || b.Index != h.boundTo(t) {
		return fmt.Errorf("the bridge is %+v, and the socket is bound to %d", b, h.boundTo(t))
	}
	err = errors.Join(h.Err(), CheckAddress(links, "ecs-bridge"))
	if h.onHost() {
		err = errors.Join(err, CheckTable(links, "ecs-bridge", h.cfg.Guard))
	}
	return err
}

// things are what a port consists of, by the commands that show it. What the kernel numbers,
// counts or orders is left out.
const things = `nft --stateless list table netdev ecs_guard | sort
	bridge -d link show | sed 's/^[0-9]*: //; s/@[^:]*:/:/'
	bridge fdb show br ecs-bridge | grep sticky | sort
	ip neigh show dev ecs-bridge nud permanent | sort
	ip -o address show dev ecs-bridge | sed 's/^[0-9]*: //' | sort`

// ends are those of a task's end.
const ends = `ip -o address | sed 's/^[0-9]*: //'; ip route; ip -o link | sed 's/^[0-9]*: //; s/link-netns.*//; s/@[^:]*:/:/'`

// What somebody removes is made again as it was, told, and counted.
func TestWhatIsRemovedIsMadeAgain(t *testing.T) {
	t.Parallel()
	const veth = "ecsvmh06gma3sir" // the host's end of c1's
	tests := map[string]struct {
		remove string
		says   string
	}{
		"the bridge":                 {"ip link del ecs-bridge", "bridge_made_again=true"},
		"the bridge's state":         {"ip link set ecs-bridge down", "ports were made whole again"},
		"the endpoint's address":     {"ip address del 169.254.170.2/32 dev ecs-bridge", ""},
		"the gateway's address":      {"ip address del 169.254.172.1/22 dev ecs-bridge", "addresses_made_again=true"},
		"all addresses":              {"ip address flush dev ecs-bridge", "addresses_made_again=true"},
		"the ports' table":           {"nft delete table netdev ecs_guard", "ports were made whole again"},
		"a port's chain":             {"nft delete chain netdev ecs_guard in-" + veth, "ports were made whole again"},
		"a chain's rules":            {"nft flush chain netdev ecs_guard in-" + veth, "ports were made whole again"},
		"a port's rule too many":     {"nft insert rule netdev ecs_guard in-" + veth + " accept", "ports were made whole again"},
		"the whole ruleset":          {"nft flush ruleset", "ports were made whole again"},
		"the ruleset and the bridge": {"nft flush ruleset; ip link del ecs-bridge", "bridge_made_again=true"},
		"a port's master":            {"ip link set " + veth + " nomaster", "is not a port of ecs-bridge"},
		"a port, for another bridge": {"ip link add name other type bridge; ip link set " + veth + " master other; ip link del other", "ports were made whole again"},
		"a port":                     {"ip link del " + veth, "is missing"},
		"a port's state":             {"ip link set " + veth + " down", "is down"},
		"a port's flags":             {"bridge link set dev " + veth + " isolated off learning on flood on", "isolated is 0"},
		"neighbours":                 {"ip neigh flush dev ecs-bridge nud permanent", "no permanent neighbour"},
		"a neighbour's address":      {"ip neigh replace 169.254.172.2 lladdr 02:00:00:00:00:01 dev ecs-bridge nud permanent", "no permanent neighbour"},
		"the forwarding entry":       {"bridge fdb del 0a:58:a9:fe:ac:02 dev " + veth + " master", "no sticky entry"},
	}
	for _, apart := range []bool{onHost, apart} {
		for name, test := range tests {
			t.Run(fmt.Sprintf("%s/apart=%v", name, apart), func(t *testing.T) {
				t.Parallel()
				h := newHostAt(t, guard.Strict, apart)
				h.run(t)
				task := h.attach(t, "c1", "")
				testnet.Await(t, "the endpoint with a task", func() error { return h.whole(t) })
				before, end := h.sh(t, things), task.Sh(t, ends)
				repairs := h.State().Repairs
				h.sh(t, test.remove)
				testnet.Await(t, "the endpoint", func() error {
					now, endNow := h.sh(t, "set +e;"+things), task.Sh(t, ends)
					if now != before || endNow != end {
						return fmt.Errorf("it is\n%s\n%s\nand was\n%s\n%s", now, endNow, before, end)
					}
					if got := h.State().Repairs - repairs; test.says != "" && (got == 0 || got > 3) {
						return fmt.Errorf("%d repairs", got)
					}
					return h.whole(t)
				})
				if test.says != "" && h.log.count(test.says) == 0 {
					t.Errorf("the log does not say %q:\n%s", test.says, &h.log.text)
				}
				if broken := h.State().Broken; len(broken) > 0 {
					t.Errorf("broken are %v", broken)
				}
			})
		}
	}
}

// What keeps the bridge apart on the host is made again as well.
func TestTheHostsTableIsMadeAgain(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]string{
		"the table":              "nft delete table inet ecs_guard",
		"a chain's rules":        "nft flush chain inet ecs_guard forward",
		"a rule too many":        "nft insert rule inet ecs_guard forward accept",
		"the whole ruleset":      "nft flush ruleset",
		"the routing rules":      "ip rule flush; ip rule add lookup main pref 32766; ip rule add lookup default pref 32767",
		"an address's route":     "ip route add local 169.254.170.2 dev ecs-bridge table local",
		"the bridge's state":     "ip link set ecs-bridge down",
		"the endpoint's address": "ip address del 169.254.170.2/32 dev ecs-bridge",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const apart = "nft --stateless list table inet ecs_guard; (ip rule; ip -4 route show table all) | sort"
			h := newHost(t, guard.Strict)
			h.run(t)
			h.attach(t, "c1", "")
			testnet.Await(t, "the host without routes to the bridge", func() error {
				if routes := h.sh(t, "ip route; ip route show table local"); strings.Contains(routes, "ecs-bridge") {
					return errors.New(routes)
				}
				return h.whole(t)
			})
			before := h.sh(t, apart)
			h.sh(t, remove)
			testnet.Await(t, "the table", func() error {
				if now := h.sh(t, "set +e;"+apart); now != before {
					return errors.New(now)
				}
				return h.whole(t)
			})
			testnet.Await(t, "the log", func() error {
				if h.log.count("table_made_again=true") == 0 {
					return errors.New("nothing says so")
				}
				return nil
			})
		})
	}
}

// A task's end that is down shows by the carrier of the host's end, and is brought up at once.
func TestATasksEndThatIsDown(t *testing.T) {
	t.Parallel()
	h := newHostAt(t, guard.Strict, apart)
	h.run(t)
	task := h.attach(t, "c1", "")
	testnet.Await(t, "the port", func() error { return h.whole(t) })
	before := task.Sh(t, ends)
	task.Sh(t, "ip link set eth0 down")
	testnet.Await(t, "the task's end", func() error {
		if now := task.Sh(t, ends); now != before {
			return errors.New(now)
		}
		return nil
	})
}

// What a task's end lacks is given back, when somebody looks at it.
func TestTheTasksEndIsMadeWhole(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]string{
		"its state":     "ip link set eth0 down",
		"its address":   "ip address flush dev eth0",
		"its routes":    "ip route flush dev eth0",
		"its MAC":       "ip link set eth0 address 02:00:00:00:00:01",
		"its interface": "ip link del eth0",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostAt(t, guard.Strict, apart)
			if err := h.Serve(h.sockets); err != nil {
				t.Fatal(err)
			}
			task := h.attach(t, "c1", "")
			if err := h.Ensure(); err != nil {
				t.Fatal(err)
			}
			before := task.Sh(t, ends)
			task.Sh(t, remove)
			if err := h.Ensure(); err != nil {
				t.Fatal(err)
			}
			if now := task.Sh(t, ends); now != before {
				t.Errorf("it has\n%s\nand had\n%s", now, before)
			}
		})
	}
}

// A network that comes asks for another table. That is no repair.
func TestANewNetworkIsNoRepair(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	h.run(t)
	h.attach(t, "c1", "")
	h.attach(t, "c2", `, "ipv4-subnet": "10.9.0.0/24"`)
	testnet.Await(t, "the routes of both subnets", func() error {
		// The host reaches neither, and what comes in by the bridge finds both.
		if routes := h.sh(t, "ip route show table all"); strings.Count(routes, "10.9.0.0/24 dev ecs-bridge table ") != 1 || strings.Count(routes, "169.254.172.0/22 dev ecs-bridge table ") != 1 || strings.Contains(h.sh(t, "ip route"), "ecs-bridge") {
			return errors.New(routes)
		}
		return h.whole(t)
	})
	if got := h.State().Repairs; got != 0 || len(h.Subnets()) != 2 {
		t.Errorf("%d repairs and the subnets %v, want none and both", got, h.Subnets())
	}
}

// With the guard off there is no table, and one of an earlier run is removed.
func TestGuardOff(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Off)
	h.sh(t, "nft add table inet ecs_guard")
	h.run(t)
	if err := h.whole(t); err != nil {
		t.Error(err)
	}
	if tables := h.sh(t, "nft list tables"); tables != "" {
		t.Errorf("there are %q", tables)
	}
}

// A port that is no attachment's is told once, whatever it says of itself, until it is gone.
func TestUnknownPorts(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	h.run(t)
	h.attach(t, "c1", "")
	h.sh(t, "ip link add forged type veth peer name other; ip link set forged alias 'taskmeta ecs-task c9 eth0 1 strict'; ip link set forged master ecs-bridge up")
	unknown := func(want ...string) func() error {
		return func() error {
			if got := h.State().UnknownPorts; !slices.Equal(got, want) {
				return fmt.Errorf("unknown ports are %v, want %v", got, want)
			}
			return nil
		}
	}
	testnet.Await(t, "the alarm", unknown("forged"))
	h.sh(t, "ip link set dev forged txqueuelen 7") // another check
	h.sh(t, "ip link del forged")
	testnet.Await(t, "the end of the alarm", unknown())
	if n := h.log.count("an unknown port on the bridge"); n != 1 {
		t.Errorf("it was told %d times", n)
	}
}

// A binding whose port is gone has its connections closed; another has not.
func TestConnectionsOfAPortThatIsGone(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	h.run(t)
	task := h.attach(t, "c1", "")
	h.attach(t, "c2", "")
	gone := ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "eth0"}
	if err := task.Close(); err != nil {
		t.Fatal(err)
	}
	testnet.Await(t, "the connections to be closed", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !slices.Equal(h.gone, []ecs.Attachment{gone}) {
			return fmt.Errorf("closed are those of %v", h.gone)
		}
		return nil
	})
}

// What cannot be made is told once, and made as soon as it can be.
func TestAnEndpointThatCannotBeMade(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	h.keep(t)
	h.sh(t, "ip link add ecs-bridge type veth peer name peer")
	testnet.Await(t, "the failure", func() error {
		if err := h.Err(); err == nil || !strings.Contains(err.Error(), "interface ecs-bridge is a veth") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	h.sh(t, "ip link set ecs-bridge txqueuelen 7") // another check
	h.sh(t, "ip link del ecs-bridge")
	testnet.Await(t, "the endpoint", func() error { return h.whole(t) })
	if n := h.log.count("the endpoint is gone"); n != 1 {
		t.Errorf("it was told %d times", n)
	}
}

// A name that somebody else's interface has is refused at the start, and nothing is made.
func TestAnotherInterfaceOfThatName(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	h.sh(t, "ip link add ecs-bridge type veth peer name peer")
	if err := h.Ensure(); err == nil || !strings.Contains(err.Error(), "making the endpoint on bridge ecs-bridge: interface ecs-bridge is a veth") {
		t.Errorf("Ensure says %v", err)
	}
	if tables := h.sh(t, "nft list tables"); tables != "" {
		t.Errorf("there are %q", tables)
	}
}

// What status asks about a host without an endpoint names what makes it.
func TestChecksOfAHostWithoutAnEndpoint(t *testing.T) {
	t.Parallel()
	h := newHost(t, guard.Strict)
	links, err := link.Open(h.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	none := func() ([]*ecs.Binding, error) { return nil, nil }
	_, bridge := CheckBridge(links, "ecs-bridge", none)
	for _, err := range []error{bridge, CheckAddress(links, "ecs-bridge"), CheckTable(links, "ecs-bridge", guard.Strict)} {
		if err == nil || !strings.Contains(err.Error(), "`ecs-resolver serve`") {
			t.Errorf("got %v", err)
		}
	}
	if err := CheckTable(links, "ecs-bridge", guard.Off); err != nil {
		t.Errorf("with the guard off: %v", err)
	}
	if err := h.Ensure(); err != nil {
		t.Fatal(err)
	}
	if ports, err := CheckBridge(links, "ecs-bridge", none); ports != 0 || err != nil {
		t.Errorf("CheckBridge: %d ports, %v", ports, err)
	}
	h.sh(t, "ip link set ecs-bridge down")
	if _, err := CheckBridge(links, "ecs-bridge", none); err == nil || !strings.Contains(err.Error(), "is down") {
		t.Errorf("of a bridge that is down: %v", err)
	}
	h.sh(t, "ip link set ecs-bridge up; nft flush table inet ecs_guard")
	if err := CheckTable(links, "ecs-bridge", guard.Strict); !errors.Is(err, guard.ErrOpen) {
		t.Errorf("of a table that was flushed: %v", err)
	}
}

// A resolver without a bridge has no keeper, and nothing is missing.
func TestNoKeeper(t *testing.T) {
	t.Parallel()
	var k *Keeper
	if k.Err() != nil || k.State().Repairs != 0 || k.Subnets() != nil {
		t.Error("a keeper that is not there has something to tell")
	}
}
