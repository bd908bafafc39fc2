package main

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

	"taskmeta/internal/admin"
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

// An endpoint is 169.254.170.2 on the bridge, the table that keeps others than tasks away
// from it, and the listening sockets bound to it. What somebody removes is made again.
type endpoint struct {
	bridge  string
	guard   guard.Mode
	sockets []net.Listener
	// closeEnded ends the connections of bindings that are gone.
	closeEnded func(gone func(*ecs.Binding) bool)
	log        *slog.Logger

	index     int            // of the bridge that the sockets are bound to
	guarded   []netip.Prefix // subnets that the table was made for
	failed    atomic.Pointer[error]
	repairs   atomic.Uint64            // times that something was made again
	strangers atomic.Pointer[[]string] // ports of the bridge that are no attachment's

	bindings *bindingdb.Reader
}

// err is why the endpoint does not stand, or nil. An endpoint that is not asked for (a
// nil one) is never missing.
func (e *endpoint) err() error {
	if e == nil {
		return nil
	}
	if failed := e.failed.Load(); failed != nil {
		return *failed
	}
	return nil
}

// ensure makes what is missing of the endpoint.
func (e *endpoint) ensure() error {
	err := e.make()
	if err != nil {
		err = fmt.Errorf("making the endpoint on bridge %s: %w", e.bridge, err)
		e.failed.Store(&err)
		return err
	}
	e.failed.Store(nil)
	return nil
}

func (e *endpoint) make() error {
	host, err := link.OpenHost()
	if err != nil {
		return err
	}
	defer host.Close()
	bridge, err := host.EnsureBridge(e.bridge, bridgeMTU)
	if err != nil {
		return err
	}
	if err := host.EnsureAddr(bridge, link.Endpoint); err != nil {
		return err
	}
	subnets, changed, err := guard.Host{Bridge: e.bridge, Mode: e.guard}.Ensure()
	if err != nil {
		return err
	}
	first, again := e.index == 0, bridge.Index != e.index
	if again {
		for _, l := range e.sockets {
			if err := bindToDevice(l, e.bridge); err != nil {
				return fmt.Errorf("binding %s to the bridge: %w", l.Addr(), err)
			}
		}
		e.index = bridge.Index
	}
	ports, err := host.Ports(bridge)
	if err != nil {
		return err
	}
	held := heldIn(e.bindings)
	restored, err := e.restorePorts(bridge, subnets, ports, held)
	if err != nil {
		return err
	}
	flushed := changed && slices.Equal(subnets, e.guarded) // else a new network asked for another table
	e.guarded = subnets
	if !first && (flushed || again || restored > 0) {
		e.repairs.Add(1)
		e.log.Warn("the endpoint was made whole again", "bridge", e.bridge, "bridge_made_again", again, "table_made_again", flushed)
	}
	e.lookForStrangers(strange(ports, held))
	e.closeEnded(without(ports))
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
func (e *endpoint) lookForStrangers(found []link.Port) {
	var before, now []string
	if known := e.strangers.Load(); known != nil {
		before = *known
	}
	for _, p := range found {
		now = append(now, p.Name)
		if !slices.Contains(before, p.Name) {
			e.log.Error("an unknown port on the bridge: remove it, or find out who made it", "bridge", e.bridge, "port", p.Name)
		}
	}
	e.strangers.Store(&now)
}

// state is what an operator is told of the endpoint; a nil one has nothing to tell.
func (e *endpoint) state() (admin.Guard, []netip.Prefix) {
	if e == nil {
		return admin.Guard{}, nil
	}
	g := admin.Guard{Repairs: e.repairs.Load()}
	if strangers := e.strangers.Load(); strangers != nil {
		g.UnknownPorts = *strangers
	}
	subnets, err := guard.Host{Bridge: e.bridge}.Subnets()
	if err != nil {
		return g, nil // there is no bridge: the endpoint's check says so
	}
	return g, subnets
}

// keep makes the endpoint again when something of it was removed, until ctx ends.
func (e *endpoint) keep(ctx context.Context) error {
	changed, err := link.Watch(ctx)
	if err != nil {
		return err
	}
	var rules <-chan struct{}
	if e.guard != guard.Off { // there may be no nftables to watch then
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
		before := e.err()
		if err := e.ensure(); err != nil && before == nil {
			e.log.Error("the endpoint is gone, and tasks get no answer; making it again is tried at each change", "every", checkInterval, "err", err)
		}
	}
}
