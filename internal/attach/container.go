package attach

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"taskmeta/internal/docker"
	"taskmeta/internal/netns"
)

var (
	// ErrNotRunning: a container that does not run has no network namespace.
	ErrNotRunning = errors.New("the container is not running")
	// ErrHostNetwork: the container has the host's network, so no address is its own.
	ErrHostNetwork = errors.New("the container uses the host's network")
)

// ended reports whether the process that a container ran in is gone, which the daemon may
// not know yet.
func ended(c docker.Container) bool {
	_, err := os.Stat(netns.Path(c.Pid))
	return err != nil
}

// usable returns the error for a container that cannot be attached.
func usable(c docker.Container) error {
	switch {
	case c.HostNetwork:
		return fmt.Errorf("%s: %w and cannot have an address of its own: start it with another --network", c.Name, ErrHostNetwork)
	case c.Pid == 0:
		return fmt.Errorf("%s: %w: start it with `docker start %[1]s`", c.Name, ErrNotRunning)
	}
	return nil
}

// owner finds the container that owns the network namespace of the named one. With an
// error of usable it is returned as well.
func (a *Attacher) owner(ctx context.Context, name string) (docker.Container, error) {
	for {
		c, err := a.Docker.Container(ctx, name)
		if err != nil {
			return docker.Container{}, err
		}
		if c.Joins == "" {
			return c, usable(c)
		}
		name = c.Joins
	}
}

// isFullID reports whether a name is the full ID of a container.
func isFullID(name string) bool {
	_, err := hex.DecodeString(name)
	return err == nil && len(name) == 64
}
