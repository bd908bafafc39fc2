// Package endpoint keeps 169.254.170.2 whole: the bridge, its address, the host's table, the
// guards of the bridge's ports, and the listening sockets that are bound to the bridge. What
// somebody removes is made again.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// bridgeMTU is what the plugin gives a bridge by default, in bytes.
const bridgeMTU = 1500

const (
	// checkInterval is the time between two checks while the kernel reports no change.
	checkInterval = 10 * time.Second
	// minInterval is the least time between two checks. A check lists all links, and the
	// plugins that attach a thousand tasks at once would wait for it.
	minInterval = 100 * time.Millisecond
)

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
	// Bindings returns the bindings that there are.
	Bindings func() ([]*ecs.Binding, error)
	// CloseEnded ends the connections of the bindings that gone reports.
	CloseEnded func(gone func(*ecs.Binding) bool)
	Logger     *slog.Logger
}

// A Keeper makes the endpoint and restores it. Ensure and Run are for one goroutine; Err
// and State are for any.
type Keeper struct {
	cfg Config

	sockets []net.Listener // bound to the bridge, each time that it is made
	bridge  int            // index of the bridge that the sockets are bound to, 0 before the first
	subnets []netip.Prefix // that the host's table was made for

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
}

// New returns a keeper that has not done anything yet.
func New(cfg Config) *Keeper { return &Keeper{cfg: cfg} }

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

// Ensure makes what is missing of the endpoint.
func (k *Keeper) Ensure() error {
	err := k.restore()
	if err != nil {
		err = fmt.Errorf("making the endpoint on bridge %s: %w", k.cfg.Bridge, err)
	}
	k.mu.Lock()
	k.err = err
	k.mu.Unlock()
	return err
}

func (k *Keeper) restore() error {
	host, err := link.Open(k.cfg.Netns)
	if err != nil {
		return err
	}
	defer host.Close()
	bridge, err := host.EnsureBridge(k.cfg.Bridge, bridgeMTU)
	if err != nil {
		return err
	}
	if err := host.EnsureAddr(bridge, link.Endpoint); err != nil {
		return err
	}
	subnets, changed, err := k.table(bridge, host)
	if err != nil {
		return err
	}
	first := k.bridge == 0
	remade, err := k.bindSockets(bridge)
	if err != nil {
		return err
	}
	ports, err := host.Ports(bridge)
	if err != nil {
		return err
	}
	held := k.held()
	guarded, err := k.guardPorts(host, bridge, subnets, ports, held)
	if err != nil {
		return err
	}
	flushed := changed && slices.Equal(subnets, k.subnets) // else a new network asked for another table
	k.subnets = subnets
	repaired := !first && (flushed || remade || guarded > 0)
	if repaired {
		k.cfg.Logger.Warn("the endpoint was made whole again", "bridge", bridge.Name, "bridge_made_again", remade, "table_made_again", flushed)
	}
	k.found(UnknownPorts(host, ports, held), repaired)
	k.cfg.CloseEnded(without(host, ports))
	return nil
}

// table keeps the bridge apart from the host's other interfaces, by routes and by the host's
// table, and returns the subnets of the bridge.
func (k *Keeper) table(bridge link.Bridge, host *link.Host) (subnets []netip.Prefix, changed bool, err error) {
	table := guard.Host{Bridge: bridge.Name, Mode: k.cfg.Guard}
	subnets, err = table.Subnets(host.Conn)
	if err != nil || !k.onHost() {
		return subnets, false, err
	}
	routed, err := host.EnsurePrivate(bridge, k.cfg.Guard != guard.Strict)
	if err != nil {
		return nil, false, err
	}
	after, changed, err := table.Ensure(host.Conn)
	// An address that came meanwhile is one of the next time.
	known := k.cfg.Guard == guard.Off || slices.Equal(subnets, after)
	return subnets, (changed || routed) && known, err
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

// held are the bindings by attachment, nil if they cannot be read: the bindings' own check
// says so.
func (k *Keeper) held() Held {
	all, err := k.cfg.Bindings()
	if err != nil {
		return nil
	}
	return HeldBy(all)
}

// found records what a check found, and warns of each port that was not known of before:
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

// Run restores the endpoint when the kernel reports a change, and every ten seconds, until
// ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	links, err := link.Watch(ctx, k.cfg.Netns)
	if err != nil {
		return err
	}
	var routes <-chan struct{}
	if k.onHost() {
		if routes, err = link.WatchPrivate(ctx, k.cfg.Netns, k.cfg.Bridge); err != nil {
			return err
		}
	}
	var rules <-chan struct{}
	if k.cfg.Guard != guard.Off { // there may be no nftables to watch then
		if rules, err = guard.Watch(ctx, k.cfg.Netns); err != nil {
			return err
		}
	}
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	pace := rate.NewLimiter(rate.Every(minInterval), 1)
	for pace.Wait(ctx) == nil {
		lost := ""
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-links:
			if !ok {
				lost = "the kernel no longer reports changes of links: start the resolver again"
			}
		case _, ok := <-routes:
			if !ok {
				lost = "the kernel no longer reports changes of routes"
			}
		case _, ok := <-rules:
			if !ok {
				lost = "the kernel no longer reports changes of nftables"
			}
		case <-tick.C:
		}
		if lost != "" && ctx.Err() == nil {
			return errors.New(lost)
		}
		before := k.Err()
		if err := k.Ensure(); err != nil && before == nil {
			k.cfg.Logger.Error("the endpoint is gone, and tasks get no answer; making it again is tried at each change", "every", checkInterval, "err", err)
		}
	}
	return nil
}
