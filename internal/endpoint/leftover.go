package endpoint

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
	"taskmeta/internal/sockdiag"
)

// Withdraw takes away what resolvers with a bridge left, for one that has none: tables and
// routes, which take tasks' packets past the translation that it stands behind, and the
// network namespace in which plugins would attach. What a resolver that runs still uses, or
// where tasks are, stays. db is the bindings file, and ns the host's namespace.
func Withdraw(ns *netns.NS, db string) error {
	host, err := link.Open(ns)
	if err != nil {
		return err
	}
	defer host.Close()
	private, err := host.PrivateBridges()
	tables, errTables := guard.Bridges(host.Conn)
	if errors.Is(errTables, unix.EPERM) {
		errTables = nil // who may not look has made none
	}
	errs := []error{err, errTables}
	bridges := append(private, tables...)
	slices.Sort(bridges)
	for _, name := range slices.Compact(bridges) {
		if hears, err := hears(host, name); hears || err != nil {
			errs = append(errs, err)
			continue
		}
		_, err := host.RemovePrivate(name)
		_, errTable := guard.Host{Bridge: name}.Remove(host.Conn)
		errs = append(errs, err, errTable)
	}
	return errors.Join(append(errs, withdrawPin(ns, netns.PinPath(db)))...)
}

// hears reports whether a resolver listens on a bridge.
func hears(host *link.Host, bridge string) (bool, error) {
	l, err := host.Link(bridge)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c, err := sockdiag.Open(host.NS)
	if err != nil {
		return false, err
	}
	defer c.Close()
	return c.ListensOn(l.Index)
}

func withdrawPin(own *netns.NS, path string) error {
	pinned, err := netns.Pinned(path)
	if err != nil {
		return nil // there is none
	}
	defer pinned.Close()
	if pinned.ID() == own.ID() || serves(pinned) {
		return nil
	}
	host, err := link.Open(pinned)
	if err != nil {
		return err
	}
	defer host.Close()
	veths, err := host.Veths()
	if err != nil {
		return err
	}
	if len(veths) > 0 {
		return fmt.Errorf("tasks are attached in the network namespace %s, and don't reach a resolver without a bridge: detach them, or run it with --netns host first", path)
	}
	return netns.Unpin(path)
}
