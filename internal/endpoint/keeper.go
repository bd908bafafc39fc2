package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// bridgeMTU is what the plugin gives a bridge by default, in bytes.
const bridgeMTU = 1500

// checkInterval is how often the endpoint is looked at though nothing was reported to
// have changed.
const checkInterval = 10 * time.Second

// calm is the least time between two looks: a look lists all links, for which the plugins
// that attach a thousand tasks at once would wait.
const calm = 100 * time.Millisecond

// A Keeper keeps the endpoint: it is 169.254.170.2 on the bridge, the table that keeps others than tasks away
// from it, and the listening sockets bound to it. What somebody removes is made again.
type Keeper struct {
	Bridge  string
	Guard   guard.Mode
	Sockets []net.Listener
	// CloseEnded ends the connections of bindings that are gone.
	CloseEnded func(gone func(*ecs.Binding) bool)
	Bindings   *bindingdb.Reader
	Logger     *slog.Logger

	index     int            // of the bridge that the sockets are bound to
	guarded   []netip.Prefix // subnets that the table was made for
	failed    atomic.Pointer[error]
	repairs   atomic.Uint64            // times that something was made again
	strangers atomic.Pointer[[]string] // ports of the bridge that are no attachment's
}

// Err is why the endpoint does not stand, or nil. An endpoint that is not asked for (a
// nil one) is never missing.
func (e *Keeper) Err() error {
	if e == nil {
		return nil
	}
	if failed := e.failed.Load(); failed != nil {
		return *failed
	}
	return nil
}

// Ensure makes what is missing of the endpoint.
func (e *Keeper) Ensure() error {
	err := e.make()
	if err != nil {
		err = fmt.Errorf("making the endpoint on bridge %s: %w", e.Bridge, err)
		e.failed.Store(&err)
		return err
	}
	e.failed.Store(nil)
	return nil
}

func (e *Keeper) make() error {
	host, err := link.OpenHost()
	if err != nil {
		return err
	}
	defer host.Close()
	bridge, err := host.EnsureBridge(e.Bridge, bridgeMTU)
	if err != nil {
		return err
	}
	if err := host.EnsureAddr(bridge, link.Endpoint); err != nil {
		return err
	}
	subnets, changed, err := guard.Host{Bridge: e.Bridge, Mode: e.Guard}.Ensure()
	if err != nil {
		return err
	}
	first, again := e.index == 0, bridge.Index != e.index
	if again {
		for _, l := range e.Sockets {
			if err := bindToDevice(l, e.Bridge); err != nil {
				return fmt.Errorf("binding %s to the bridge: %w", l.Addr(), err)
			}
		}
		e.index = bridge.Index
	}
	ports, err := host.Ports(bridge)
	if err != nil {
		return err
	}
	held := HeldIn(e.Bindings)
	restored, err := e.restorePorts(bridge, subnets, ports, held)
	if err != nil {
		return err
	}
	flushed := changed && slices.Equal(subnets, e.guarded) // else a new network asked for another table
	e.guarded = subnets
	if !first && (flushed || again || restored > 0) {
		e.repairs.Add(1)
		e.Logger.Warn("the endpoint was made whole again", "bridge", e.Bridge, "bridge_made_again", again, "table_made_again", flushed)
	}
	e.lookForStrangers(Strange(ports, held))
	e.CloseEnded(without(ports))
	return nil
}

// without reports of a binding whether its interface is gone. One that is not among the
// ports may have come since they were listed. Those that AWS's plugin made do not say whose
// they are.
func without(ports []link.Port) func(*ecs.Binding) bool {
	there := make(map[ecs.Attachment]bool, len(ports))
	for _, p := range ports {
		if p.Veth != nil {
			there[p.Veth.Attachment] = true
		}
	}
	return func(b *ecs.Binding) bool {
		if b.Network == "" || there[b.Attachment] {
			return false
		}
		_, err := net.InterfaceByName(link.HostName(b.Attachment))
		return err != nil
	}
}

// lookForStrangers tells of each port of the bridge that no plugin made: whoever made it
// can send what it likes.
func (e *Keeper) lookForStrangers(found []link.Port) {
	var before, now []string
	if known := e.strangers.Load(); known != nil {
		before = *known
	}
	for _, p := range found {
		now = append(now, p.Name)
		if !slices.Contains(before, p.Name) {
			e.Logger.Error("an unknown port on the bridge: remove it, or find out who made it", "bridge", e.Bridge, "port", p.Name)
		}
	}
	e.strangers.Store(&now)
}

// A State is how the endpoint is doing.
type State struct {
	// Repairs is how often something was made again.
	Repairs uint64
	// UnknownPorts are the ports of the bridge that are no attachment's.
	UnknownPorts []string
	// Subnets are those of the bridge's addresses, each with the bridge's own address in it;
	// nil if there is no bridge.
	Subnets []netip.Prefix
}

// State returns the endpoint's state for status pages and metrics; a nil one has none.
func (e *Keeper) State() State {
	if e == nil {
		return State{}
	}
	s := State{Repairs: e.repairs.Load()}
	if strangers := e.strangers.Load(); strangers != nil {
		s.UnknownPorts = *strangers
	}
	if subnets, err := (guard.Host{Bridge: e.Bridge}).Subnets(); err == nil { // else the endpoint's check says so
		s.Subnets = subnets
	}
	return s
}

// Run makes the endpoint again when something of it was removed, until ctx ends.
func (e *Keeper) Run(ctx context.Context) error {
	changed, err := link.Watch(ctx)
	if err != nil {
		return err
	}
	var rules <-chan struct{}
	if e.Guard != guard.Off { // there may be no nftables to watch then
		if rules, err = guard.Watch(ctx); err != nil {
			return err
		}
	}
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	pace := rate.NewLimiter(rate.Every(calm), 1)
	for {
		if pace.Wait(ctx) != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changed:
			if !ok && ctx.Err() != nil {
				return nil
			}
			if !ok {
				return errors.New("the kernel no longer reports changes of links: start the resolver again")
			}
		case _, ok := <-rules:
			if !ok && ctx.Err() != nil {
				return nil
			}
			if !ok {
				return errors.New("the kernel no longer reports changes of nftables")
			}
		case <-tick.C:
		}
		before := e.Err()
		if err := e.Ensure(); err != nil && before == nil {
			e.Logger.Error("the endpoint is gone, and tasks get no answer; making it again is tried at each change", "every", checkInterval, "err", err)
		}
	}
}
