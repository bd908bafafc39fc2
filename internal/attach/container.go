package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"taskmeta/internal/ecs"
)

var (
	// ErrNoContainer: the daemon knows no container of that name or ID.
	ErrNoContainer = errors.New("no such container")
	// ErrNotRunning: a container that does not run has no network namespace.
	ErrNotRunning = errors.New("the container is not running")
	// ErrHostNetwork: the container has the host's network, so no address is its own.
	ErrHostNetwork = errors.New("the container uses the host's network")
)

// A Container is one of Docker's.
type Container struct {
	ID, Name string
	Labels   map[string]string

	pid  int // 0 while it does not run
	mode container.NetworkMode
}

// netns is the path of its network namespace.
func (c Container) netns() string { return fmt.Sprintf("/proc/%d/ns/net", c.pid) }

// ended reports whether the process that it ran in is gone, which the daemon may not know
// yet.
func (c Container) ended() bool {
	_, err := os.Stat(c.netns())
	return err != nil
}

// usable returns the error for a container that cannot be attached.
func (c Container) usable() error {
	switch {
	case c.mode.IsHost():
		return fmt.Errorf("%s: %w and cannot have an address of its own: start it with another --network", c.Name, ErrHostNetwork)
	case c.pid == 0:
		return fmt.Errorf("%s: %w: start it with `docker start %[1]s`", c.Name, ErrNotRunning)
	}
	return nil
}

// inspect asks the daemon for a container.
func (a *Attacher) inspect(ctx context.Context, name string) (Container, error) {
	found, err := a.docker.ContainerInspect(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		return Container{}, fmt.Errorf("%w: %s: `docker ps` lists those that run", ErrNoContainer, name)
	case err != nil:
		return Container{}, a.unavailable(err)
	}
	return Container{
		ID:     found.ID,
		Name:   strings.TrimPrefix(found.Name, "/"),
		Labels: found.Config.Labels,
		pid:    found.State.Pid,
		mode:   found.HostConfig.NetworkMode,
	}, nil
}

// unavailable says which daemon cannot be asked.
func (a *Attacher) unavailable(err error) error {
	if client.IsErrConnectionFailed(err) {
		return fmt.Errorf("%w: nothing answers at %s: start it, or name another with --docker-host", ecs.ErrDockerUnavailable, a.docker.DaemonHost())
	}
	return fmt.Errorf("%w: %s: %w", ecs.ErrDockerUnavailable, a.docker.DaemonHost(), err)
}

// owner finds the container that owns the network namespace of the named one. With an
// error of usable it is returned as well.
func (a *Attacher) owner(ctx context.Context, name string) (Container, error) {
	for {
		c, err := a.inspect(ctx, name)
		if err != nil {
			return Container{}, err
		}
		if !c.mode.IsContainer() {
			return c, c.usable()
		}
		name = c.mode.ConnectedContainer()
	}
}

// Names returns the names of all containers by ID.
func (a *Attacher) Names(ctx context.Context) (map[string]string, error) {
	list, err := a.docker.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, a.unavailable(err)
	}
	names := make(map[string]string, len(list))
	for _, c := range list {
		for _, name := range c.Names {
			// A linked container has further names, with a second slash.
			if name = strings.TrimPrefix(name, "/"); !strings.Contains(name, "/") {
				names[c.ID] = name
			}
		}
	}
	return names, nil
}
