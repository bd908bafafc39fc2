package port

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/ipam"
	"taskmeta/internal/netns"
)

// Open opens the network namespace in which the bridge stands: what the configuration's key
// names, or else the one that is pinned beside the bindings file, or else the plugin's own,
// as AWS's pair has it. Pin is the path of one that is not the plugin's own.
func Open(conf []byte, named string) (ns *netns.NS, pin string, err error) {
	own, err := netns.Own()
	if err != nil || named == OnHost {
		return own, "", err
	}
	path := named
	if path == "" {
		if path = beside(conf); path == "" {
			return own, "", nil
		}
	}
	ns, err = netns.Pinned(path)
	switch {
	case err == nil && ns.ID() == own.ID():
		return own, "", ns.Close()
	case err == nil:
		return ns, path, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, "", fmt.Errorf("opening the endpoint's network namespace: %w", err)
	case named == "":
		return own, "", nil
	}
	shown, _ := json.Marshal(named)
	return nil, "", cniedge.BadKey("netns", shown, netnsExpected)
}

// OpenAll opens every network namespace in which a port may stand by now: the one that
// [Open] finds comes first, then the plugin's own and the pinned one. A resolver may have
// come since, an upgrade, or another value of the key. What is missing is left out.
func OpenAll(conf []byte, named string) (all []*netns.NS, err error) {
	own, err := netns.Own()
	if err != nil {
		return nil, err
	}
	pinned := func(path string) error {
		if path == "" || path == OnHost {
			return nil
		}
		ns, err := netns.Pinned(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("opening the endpoint's network namespace: %w", err)
		case slices.ContainsFunc(append(all, own), func(n *netns.NS) bool { return n.ID() == ns.ID() }):
			return ns.Close()
		}
		all = append(all, ns)
		return nil
	}
	if err := pinned(named); err != nil {
		return nil, err
	}
	if named == OnHost {
		all = append(all, own)
	}
	if err := pinned(beside(conf)); err != nil {
		return nil, err
	}
	if named != OnHost {
		all = append(all, own)
	}
	return all, nil
}

// beside is the path of the pin beside the bindings file, "" if it is not known where that
// is: ecs-ipam says what is wrong with its key, and another plugin has no such key.
func beside(conf []byte) string {
	db, err := ipam.Path(conf)
	if err != nil {
		return ""
	}
	return netns.PinPath(db)
}

// Named is what a network namespace is called in messages.
func Named(ns *netns.NS) string {
	if own, err := netns.Own(); err == nil && ns.ID() == own.ID() {
		return "the plugin's own network namespace"
	}
	return ns.Path()
}
