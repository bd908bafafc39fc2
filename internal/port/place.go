package port

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

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
		db, err := ipam.Path(conf)
		if err != nil {
			return own, "", nil // ecs-ipam says what is wrong; another plugin has no such key
		}
		path = netns.PinPath(db)
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
