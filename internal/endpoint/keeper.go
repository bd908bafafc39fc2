// Package endpoint keeps 169.254.170.2 whole: its network namespace and the pin of that, the
// bridge and its addresses, the host's table, the listening sockets that are bound to the
// bridge, and every port that a binding names. What somebody removes is made again, and what
// stands in another place is moved.
package endpoint

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// bridgeMTU is what the plugin gives a bridge by default, in bytes.
const bridgeMTU = 1500

// Config is what a [Keeper] needs.
type Config struct {
	// Netns is the network namespace that all of it stands in, and Host that of the host's
	// interfaces. Pin is where Netns is pinned, "" if it is Host.
	Netns, Host *netns.NS
	Pin         string
	Bridge      string
	// Guard is the mode of the host's table, which there is on the host alone, and says with
	// [guard.Off] that ports' chains are nobody's.
	Guard guard.Mode
	// DB is the bindings file.
	DB string
	// Bindings returns the bindings that there are. A binding is the same pointer as long as
	// it lasts.
	Bindings func() ([]*ecs.Binding, error)
	// CloseEnded ends the connections of the bindings that gone reports.
	CloseEnded func(gone func(*ecs.Binding) bool)
	Logger     *slog.Logger
}

// A Keeper makes the endpoint and restores it. Ensure, Serve and Run are for one goroutine;
// Err and State are for any.
type Keeper struct {
	cfg Config

	sockets  []net.Listener              // bound to the bridge, each time that it is made
	bridge   int                         // index of the bridge that they are bound to, 0 before the first
	addrs    []rtnl.Addr                 // of the host, that its table was made for
	gateways map[netip.Prefix]bool       // of the ports, at the last look
	kept     map[*ecs.Binding]*kept      // nil for a binding whose port is not to be kept
	rules    guard.Rules                 // that were found to be right
	failing  map[ecs.Attachment]*failure // ports that could not be made whole
	strays   []*netns.NS                 // that were pinned in the place of Netns
	pinLost  bool                        // and could not be made again
	tasks    int                         // how many tasks' ends were looked at, in turn
	soon     bool                        // something was held by others: look again
	index    atomic.Int64                // of the bridge, for the watch

	mu    sync.Mutex // for what follows
	err   error      // why the endpoint does not stand
	state State
}

// A State is what was found so far.
type State struct {
	// Repairs is how often something was made again.
	Repairs uint64
	// UnknownPorts are the names of the bridge's ports that are no attachment's.
	UnknownPorts []string
	// Broken are the ports that could not be made whole.
	Broken []Broken
}

// A Broken port is one whose task may get no answer.
type Broken struct {
	Binding *ecs.Binding
	Since   time.Time
	Err     error
}

// New returns a keeper that has not done anything yet.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, kept: make(map[*ecs.Binding]*kept), failing: make(map[ecs.Attachment]*failure)}
}

// Err is why the endpoint does not stand, or nil. A resolver without a bridge has no
// keeper: nil misses nothing.
func (k *Keeper) Err() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// State returns what was found so far. That of a nil keeper is empty.
func (k *Keeper) State() State {
	if k == nil {
		return State{}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Subnets are those of the bridge's addresses, each with the bridge's own address in it. A
// nil keeper, or one whose bridge is gone, has none.
func (k *Keeper) Subnets() []netip.Prefix {
	if k == nil {
		return nil
	}
	host, err := link.Open(k.cfg.Netns)
	if err != nil {
		return nil
	}
	defer host.Close()
	subnets, err := guard.Host{Bridge: k.cfg.Bridge}.Subnets(host.Conn)
	if err != nil {
		return nil // Err says so
	}
	return subnets
}

// onHost reports whether the bridge stands among the host's interfaces.
func (k *Keeper) onHost() bool { return k.cfg.Pin == "" }

// EnsureBridge makes the bridge, for sockets to be bound to.
func (k *Keeper) EnsureBridge() error {
	host, err := link.Open(k.cfg.Netns)
	if err == nil {
		if err = CheckOurs(host, k.cfg.Bridge, k.cfg.Bindings); err == nil {
			_, err = host.EnsureBridge(k.cfg.Bridge, bridgeMTU)
		}
		host.Close()
	}
	if err != nil {
		return fmt.Errorf("making the endpoint on bridge %s: %w", k.cfg.Bridge, err)
	}
	return nil
}

// Serve makes the endpoint for these sockets, which are bound to the bridge from then on.
func (k *Keeper) Serve(sockets []net.Listener) error {
	k.sockets = sockets
	return k.Ensure()
}

// Ensure makes what is missing of the endpoint, and makes every port whole.
func (k *Keeper) Ensure() error { return k.ensure(true) }

func (k *Keeper) ensure(all bool) error {
	err := k.restore(all)
	if err != nil {
		err = fmt.Errorf("making the endpoint on bridge %s: %w", k.cfg.Bridge, err)
	}
	k.mu.Lock()
	k.err = err
	k.mu.Unlock()
	return err
}

// restore looks at the endpoint once and makes what is missing. With all it also looks at the
// other places, and at the tasks' ends of some ports, for which it has to enter their
// namespaces.
func (k *Keeper) restore(all bool) error {
	k.soon = false
	pinned := k.keepPin()
	host, err := link.Open(k.cfg.Netns)
	if err != nil {
		return err
	}
	defer host.Close()
	bridge, err := host.EnsureBridge(k.cfg.Bridge, bridgeMTU)
	if err != nil {
		return err
	}
	k.index.Store(int64(bridge.Index))
	if err := host.EnsureAddr(bridge, link.Endpoint); err != nil {
		return err
	}
	others := &elsewhere{keeper: k}
	defer others.close()
	bindings, readErr := k.cfg.Bindings() // the bindings' own check says so
	ports := k.keptOf(bindings, host, others)
	readdressed, err := k.ensureGateways(host, bridge, ports)
	if err != nil {
		return err
	}
	undone, err := k.table(bridge, host)
	if err != nil {
		return err
	}
	first := k.bridge == 0
	remade, err := k.bindSockets(bridge)
	if err != nil {
		return err
	}
	mended, moved, links, err := k.mendPorts(host, bridge, ports, others, all)
	if err != nil {
		return err
	}
	repaired := !first && (undone || remade || pinned || readdressed)
	if repaired {
		k.cfg.Logger.Warn("the endpoint was made whole again", "bridge", bridge.Name,
			"bridge_made_again", remade, "table_made_again", undone, "addresses_made_again", readdressed, "pin_made_again", pinned)
	}
	if moved > 0 {
		k.cfg.Logger.Info("ports were moved to the endpoint's network namespace", "bridge", bridge.Name, "ports", moved)
	}
	if all || others.opened {
		k.clear(others.get())
	}
	on := readPorts(host, links, ports)
	var held Held
	if readErr == nil {
		if bindings, err := k.cfg.Bindings(); err == nil { // read after the ports
			held = HeldBy(bindings)
		}
	}
	k.found(UnknownPorts(host, on, held), repaired || !first && mended > 0)
	k.cfg.CloseEnded(without(host, on))
	return nil
}

// ensureGateways gives the bridge the gateways of all ports, and reports whether one was
// missing that was there before: that of a new network may be there before its ADD gives it.
func (k *Keeper) ensureGateways(host *link.Host, bridge link.Bridge, ports []*kept) (again bool, err error) {
	want := make(map[netip.Prefix]bool)
	for _, p := range ports {
		for _, gateway := range p.Grant.Gateways {
			want[gateway] = true
		}
	}
	known := k.gateways
	k.gateways = maps.Clone(want)
	if len(want) == 0 {
		return false, nil
	}
	has, err := host.Addrs(bridge.Index)
	if err != nil {
		return false, err
	}
	for _, a := range has {
		delete(want, a.Prefix)
	}
	for gateway := range want {
		if err := host.EnsureAddr(bridge, gateway); err != nil {
			return again, err
		}
		again = again || known[gateway]
	}
	return again, nil
}

// table keeps the bridge apart from the host's other interfaces, by routes and by the host's
// table, and reports whether somebody has undone that. New addresses, be it another
// interface's, ask for other rules: that is no repair.
func (k *Keeper) table(bridge link.Bridge, host *link.Host) (undone bool, err error) {
	if !k.onHost() {
		return false, nil
	}
	before, err := addrsOf(host)
	if err != nil {
		return false, err
	}
	routed, err := host.EnsurePrivate(bridge, k.cfg.Guard != guard.Strict)
	if err != nil {
		return false, err
	}
	_, changed, err := guard.Host{Bridge: bridge.Name, Mode: k.cfg.Guard}.Ensure(host.Conn)
	if err != nil {
		return false, err
	}
	after, err := addrsOf(host) // what came meanwhile is new the next time
	undone = (changed || routed) && slices.Equal(before, k.addrs) && slices.Equal(before, after)
	k.addrs = before
	return undone, err
}

// addrsOf are the addresses of all interfaces, in an order of their own.
func addrsOf(host *link.Host) ([]rtnl.Addr, error) {
	all, err := host.Addrs(0)
	slices.SortFunc(all, func(a, b rtnl.Addr) int {
		return cmp.Or(a.Index-b.Index, a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
	})
	return all, err
}

// bindSockets binds the sockets to a bridge that they are not bound to yet, and reports
// whether there was one.
func (k *Keeper) bindSockets(bridge link.Bridge) (changed bool, err error) {
	if bridge.Index == k.bridge {
		return false, nil
	}
	for _, l := range k.sockets {
		if err := bindToDevice(l, bridge.Name); err != nil {
			return false, fmt.Errorf("binding %s to the bridge: %w", l.Addr(), err)
		}
	}
	k.bridge = bridge.Index
	return true, nil
}

// found records what a look found, and warns of each port that was not known of before:
// whoever made it can send what it likes.
func (k *Keeper) found(unknown []string, repaired bool) {
	k.mu.Lock()
	before := k.state.UnknownPorts
	k.state.UnknownPorts = unknown
	if repaired {
		k.state.Repairs++
	}
	k.mu.Unlock()
	for _, port := range unknown {
		if !slices.Contains(before, port) {
			k.cfg.Logger.Error("an unknown port on the bridge: remove it, or find out who made it", "bridge", k.cfg.Bridge, "port", port)
		}
	}
}
