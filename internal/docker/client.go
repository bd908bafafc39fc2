package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"

	"taskmeta/internal/ecs"
)

// ErrNoContainer: the daemon knows no container of that name or ID.
var ErrNoContainer = errors.New("no such container")

// pageSize is how many containers are listed at once: a list of ten thousand would take
// more memory than all that is kept of them.
const pageSize = 500

// A Client asks a Docker daemon, with a deadline on each call.
type Client struct {
	opts    []client.Opt
	timeout time.Duration // of a call
	// cli speaks the version of the API that the daemon speaks that it met first. Docker may
	// be upgraded meanwhile, so it is another after each renew.
	cli atomic.Pointer[client.Client]
}

// NewClient makes a client of the daemon at host, which is an address as in DOCKER_HOST;
// "" stands for DOCKER_HOST, or else Docker's default. It does not connect yet.
func NewClient(host string) (*Client, error) {
	opts := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if host != "" {
		opts = append(opts, client.WithHost(host))
	}
	cli, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, fmt.Errorf("the Docker daemon's address %q: %w", host, err)
	}
	c := &Client{opts: opts, timeout: commandTimeout}
	c.cli.Store(cli)
	return c, nil
}

// renew negotiates the version of the API with the daemon that answers now, and reads the
// certificates anew.
func (c *Client) renew(ctx context.Context) error {
	cli, err := client.NewClientWithOpts(c.opts...)
	if err != nil {
		return fmt.Errorf("the Docker daemon's address: %w", err)
	}
	ping, err := cli.Ping(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("negotiating the version of the API: %w", err), cli.Close())
	}
	cli.NegotiateAPIVersionPing(ping)
	return c.cli.Swap(cli).Close()
}

// ask makes a call, and once more after renew if the daemon refuses it as invalid, as it
// does when it does not speak the negotiated version of the API any more.
func (c *Client) ask(ctx context.Context, timeout time.Duration, call func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cli := c.cli.Load()
	err := call(ctx, cli)
	if !errdefs.IsInvalidArgument(err) {
		return err
	}
	if cli == c.cli.Load() {
		if e := c.renew(ctx); e != nil {
			return errors.Join(err, e)
		}
	}
	return call(ctx, c.cli.Load())
}

// Host is the daemon's address, as in DOCKER_HOST.
func (c *Client) Host() string { return c.cli.Load().DaemonHost() }

// A Container is what whoever attaches containers has to know of one.
type Container struct {
	ID, Name    string
	Labels      map[string]string // not to be changed
	Pid         int               // of its first process, 0 while it does not run
	Joins       string            // the container whose network namespace it shares
	HostNetwork bool              // it lives in the host's network namespace
}

// Container returns the container of a name or an ID. Errors: [ErrNoContainer],
// [ecs.ErrDockerUnavailable].
func (c *Client) Container(ctx context.Context, name string) (Container, error) {
	info, err := c.inspect(ctx, c.timeout, name)
	if err != nil && !errors.Is(err, ErrNoContainer) {
		err = c.unavailable(err)
	}
	if err != nil {
		return Container{}, err
	}
	e, err := inspected("", info)
	if err != nil {
		return Container{}, err
	}
	return e.summary(), nil
}

// Names returns the names of all containers by ID. Errors: [ecs.ErrDockerUnavailable].
func (c *Client) Names(ctx context.Context) (map[string]string, error) {
	names := make(map[string]string)
	err := c.listAll(ctx, c.timeout, func(page []container.Summary) {
		for i := range page {
			for _, name := range page[i].Names {
				// A linked container has further names, with a second slash.
				if name = dockerName(name); !strings.Contains(name, "/") {
					names[page[i].ID] = name
				}
			}
		}
	})
	if err != nil {
		return nil, c.unavailable(err)
	}
	return names, nil
}

// commandTimeout bounds a call that a command makes, each page of a list by itself.
const commandTimeout = 5 * time.Second

// Version asks the daemon for its version and says where it is. Errors:
// [ecs.ErrDockerUnavailable].
func (c *Client) Version(ctx context.Context) (string, error) {
	var v types.Version
	err := c.ask(ctx, c.timeout, func(ctx context.Context, cli *client.Client) (err error) {
		v, err = cli.ServerVersion(ctx)
		return err
	})
	if err != nil {
		return "", c.unavailable(err)
	}
	return fmt.Sprintf("Docker %s at %s", v.Version, c.Host()), nil
}

// unavailable says which daemon cannot be asked, and why.
func (c *Client) unavailable(err error) error {
	if cause := c.cause(err); cause != nil {
		return fmt.Errorf("%w: %w", ecs.ErrDockerUnavailable, cause)
	}
	return fmt.Errorf("%w: %s: %w", ecs.ErrDockerUnavailable, c.Host(), err)
}

func (c *Client) inspect(ctx context.Context, timeout time.Duration, name string) (*container.InspectResponse, error) {
	var info container.InspectResponse
	err := c.ask(ctx, timeout, func(ctx context.Context, cli *client.Client) (err error) {
		info, err = cli.ContainerInspect(ctx, name)
		return err
	})
	switch {
	case errdefs.IsNotFound(err):
		return nil, fmt.Errorf("%w: %s: `docker ps` lists those that run", ErrNoContainer, name)
	case err != nil:
		return nil, fmt.Errorf("inspecting container %s: %w", name, err)
	}
	return &info, nil
}

// listAll lists all containers, page by page and the newest first. The time-out is each
// page's.
func (c *Client) listAll(ctx context.Context, timeout time.Duration, do func(page []container.Summary)) error {
	args := filters.NewArgs()
	for {
		page, err := c.list(ctx, timeout, pageSize, args)
		if errdefs.IsNotFound(err) { // the last one of the page before
			args = filters.NewArgs()
			continue
		}
		if err != nil {
			return err
		}
		do(page)
		if len(page) < pageSize {
			return nil
		}
		args = filters.NewArgs(filters.Arg("before", page[len(page)-1].ID))
	}
}

// list asks for the containers that args let through, at most limit if it is not 0.
func (c *Client) list(ctx context.Context, timeout time.Duration, limit int, args filters.Args) ([]container.Summary, error) {
	var page []container.Summary
	err := c.ask(ctx, timeout, func(ctx context.Context, cli *client.Client) (err error) {
		page, err = cli.ContainerList(ctx, container.ListOptions{All: true, Limit: limit, Filters: args})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	for i := range page {
		if len(page[i].ID) < shortID {
			return nil, fmt.Errorf("listing containers: %q is not a container's ID", page[i].ID)
		}
	}
	return page, nil
}
