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
	*testnet.Namespace
	*Keeper
	ns     *netns.NS
	db     string
	socket net.Listener
	log    *buffer

	mu   sync.Mutex
	gone []ecs.Attachment // whose connections were to be closed, at the last check
}

func newHost(t *testing.T, mode guard.Mode) *host {
	t.Helper()
	h := &host{Namespace: testnet.T(t), db: filepath.Join(t.TempDir(), "bindings.db"), log: &buffer{}}
	var err error
	if h.ns, err = netns.Open(h.Path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.ns.Close() })
	if h.socket, err = h.Listen("tcp", ":80"); err != nil {
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
		Netns: h.ns, Host: h.ns, Bridge: "ecs-bridge", Guard: mode, DB: h.db, Bindings: bindings,
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
func (h *host) attach(t *testing.T, container, keys string) {
	t.Helper()
	task := testnet.T(t)
	_, err := testnet.Call{
		Program: filepath.Join(bin, "ecs-bridge"), Verb: "ADD", Container: container, Netns: task.Path(), Env: []string{"IPAM_DB_PATH=" + h.db},
		Conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge", "ipam": {"type": "ecs-ipam"` + keys + `}}`,
	}.Run(t.Context(), h.Namespace)
	if err != nil {
		t.Fatal(err)
	}
}

// sh runs a command line on the host and returns what it prints.
func (h *host) sh(t *testing.T, line string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("sh", "-ec", line)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Namespace.Run(cmd); err != nil {
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
	return errors.Join(h.Err(), CheckAddress(links, "ecs-bridge"), CheckTable(links, "ecs-bridge", h.cfg.Guard))
}

// What somebody removes is made again as it was, told, and counted once.
func TestWhatIsRemovedIsMadeAgain(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		remove  string
		repairs bool // it counts as a repair
		says    string
	}{
		"the bridge":                 {"ip link del ecs-bridge", true, "bridge_made_again=true"},
		"the bridge's state":         {"ip link set ecs-bridge down", true, "table_made_again=true"},
		"the endpoint's address":     {"ip address del 169.254.170.2/32 dev ecs-bridge", true, "table_made_again=true"},
		"the rules of routing":       {"ip rule flush; ip rule add lookup main pref 32766", true, "table_made_again=true"},
		"the host's table":           {"nft delete table inet ecs_guard", true, "table_made_again=true"},
		"a chain of the host's":      {"nft flush chain inet ecs_guard raw", true, "table_made_again=true"},
		"a rule too many":            {"nft insert rule inet ecs_guard raw accept", true, "table_made_again=true"},
		"the ports' table":           {"nft delete table netdev ecs_guard", true, "ports were guarded again"},
		"the whole ruleset":          {"nft flush ruleset", true, "ports were guarded again"},
		"the ruleset and the bridge": {"nft flush ruleset; ip link del ecs-bridge", true, "bridge_made_again=true"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, guard.Strict)
			h.run(t)
			h.attach(t, "c1", "")
			testnet.Await(t, "the table for the task's subnet", func() error { return h.whole(t) })
			ports := h.sh(t, "nft --stateless list table netdev ecs_guard")
			before := h.State().Repairs
			h.sh(t, test.remove)
			testnet.Await(t, "the endpoint", func() error {
				if err := h.whole(t); err != nil {
					return err
				}
				if got := h.State().Repairs - before; (got > 0) != test.repairs || got > 2 {
					return fmt.Errorf("%d repairs", got)
				}
				if !strings.Contains(test.remove, "link del") && h.sh(t, "nft --stateless list table netdev ecs_guard || true") != ports {
					return errors.New("the port's chain is not as it was")
				}
				return nil
			})
			if test.says != "" && h.log.count(test.says) == 0 {
				t.Errorf("the log does not say %q:\n%s", test.says, &h.log.text)
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
	h.attach(t, "c1", "")
	h.attach(t, "c2", "")
	gone := ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "eth0"}
	h.sh(t, "ip link del "+link.HostName(gone))
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
