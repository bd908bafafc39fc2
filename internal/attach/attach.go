// Package attach gives Docker containers an attachment to the tasks' bridge, as a container
// runtime would: it finds a container's network namespace and runs the CNI plugins for it.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// IfName is the name of the interface in the container, the one that the ECS agent gives
// it. A container on a Docker network has an eth0 already, and keeps it.
const IfName = "ecs-eth0"

// A Config says which containers are attached to what.
type Config struct {
	// Docker is asked for the containers.
	Docker *docker.Client
	// DB is the bindings file, which is handed to the plugins. Beside it stand a lock and
	// what libcni keeps of each attachment.
	DB string
	// PluginPath are the folders in which the plugins are looked for.
	PluginPath []string
	// Network is the name of a network configured in NetDir, or "" for one that is built
	// in: ecs-bridge with Bridge, and ecs-ipam with its defaults. No other runtime may use
	// the network.
	Network, NetDir, Bridge string
	Logger                  *slog.Logger
	// Netns is the network namespace that the bridge stands in.
	Netns *netns.NS
}

// An Attacher attaches containers and detaches them. It may be used by many goroutines,
// and beside others on the host.
type Attacher struct {
	Config
	network  *libcni.NetworkConfigList
	cni      *libcni.CNIConfig
	bindings *bindingdb.Reader
	progress progress
}

// New reads the network's configuration. The daemon and the bindings file need not be
// there yet.
func New(c Config) (*Attacher, error) {
	network, err := c.load()
	if err != nil {
		return nil, err
	}
	bindings, err := bindingdb.NewReader(c.DB, bindingdb.Options{})
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(filepath.Dir(c.DB), "cni")
	// libcni would make the same when it is first used, without a lock.
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}, PluginDecoder: version.PluginDecoder{}}
	return &Attacher{
		Config:   c,
		network:  network,
		cni:      libcni.NewCNIConfigWithCacheDir(c.PluginPath, cache, exec),
		bindings: bindings,
	}, nil
}

// An Attached is a container with its addresses.
type Attached struct {
	// Container is the one that owns the network namespace: the one asked for, or the one
	// whose network it shares.
	Container docker.Container
	Binding   *ecs.Binding
	// Already is set if nothing had to be done.
	Already bool
}

// Attach attaches a running container, given by name or ID, or the container whose network
// it shares. Errors: [docker.ErrNoContainer], [ErrNotRunning], [ErrHostNetwork],
// [ecs.ErrDockerUnavailable], and those of the plugins.
func (a *Attacher) Attach(ctx context.Context, name string) (Attached, error) {
	owner, err := a.owner(ctx, name)
	if err != nil {
		return Attached{}, err
	}
	free, err := a.lock(ctx, exclusive)
	if err != nil {
		return Attached{}, err
	}
	defer free()
	return a.add(ctx, owner)
}

// Detach undoes Attach. It also takes the ID of a container that is gone. It returns what
// was detached, or nil if there was nothing.
func (a *Attacher) Detach(ctx context.Context, name string) (*ecs.Binding, error) {
	owner, err := a.owner(ctx, name)
	id := owner.ID
	switch {
	case errors.Is(err, docker.ErrNoContainer):
		id = name
	case err != nil && !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrHostNetwork):
		return nil, err
	}
	free, err := a.lock(ctx, exclusive)
	if err != nil {
		return nil, err
	}
	defer free()
	return a.remove(ctx, id)
}

// add attaches a container that owns its namespace. What is left of an earlier life of the
// container, or of an attempt that was cut short, is removed first.
func (a *Attacher) add(ctx context.Context, c docker.Container) (Attached, error) {
	key := a.key(c.ID)
	bound, err := a.binding(key)
	if err != nil {
		return Attached{}, err
	}
	has, err := addresses(netns.Path(c.Pid))
	if err != nil {
		return Attached{}, err
	}
	if bound != nil && slices.ContainsFunc(has, bound.Has) {
		return Attached{c, bound, true}, nil
	}
	if bound != nil || len(has) > 0 {
		if err := a.del(ctx, key, netns.Path(c.Pid)); err != nil {
			return Attached{}, err
		}
	}
	list, err := a.configure(a.network, c.Labels)
	if err != nil {
		return Attached{}, err
	}
	verb, cancel := inFull(ctx)
	defer cancel()
	if _, err := a.cni.AddNetworkList(verb, list, runtimeConf(key, netns.Path(c.Pid))); err != nil {
		return Attached{}, fmt.Errorf("attaching %s: %w", c.Name, err)
	}
	if bound, err = a.binding(key); err == nil && bound == nil {
		err = fmt.Errorf("attaching %s: network %s recorded no address in %s: expected a plugin whose ipam is ecs-ipam", c.Name, a.network.Name, a.DB)
	}
	return Attached{Container: c, Binding: bound}, err
}

// remove detaches the container of that full ID, if it is attached.
func (a *Attacher) remove(ctx context.Context, id string) (*ecs.Binding, error) {
	bound, err := a.binding(a.key(id))
	if err != nil || bound == nil {
		return nil, err
	}
	return bound, a.del(ctx, bound.Attachment, "")
}

// del runs the plugins' DEL. The network of an attachment that somebody else made is not
// known; the built-in one has the same plugins.
func (a *Attacher) del(ctx context.Context, key ecs.Attachment, netns string) error {
	list := a.network
	if key.IsProbe() {
		list = forProbes(list)
	} else if key.Network != list.Name {
		var err error
		if list, err = builtin(key.Network, a.Bridge); err != nil {
			return err
		}
	}
	list, err := a.configure(list, nil)
	if err != nil {
		return err
	}
	verb, cancel := inFull(ctx)
	defer cancel()
	if err := a.cni.DelNetworkList(verb, list, runtimeConf(key, netns)); err != nil {
		return fmt.Errorf("detaching %s: %w", key, err)
	}
	return nil
}

// inFull lets a verb of the plugins end, though ctx may: what is left half done has to be
// undone later. The time is more than the plugins take before they give up themselves.
func inFull(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 45*time.Second)
}

func (a *Attacher) key(id string) ecs.Attachment {
	return ecs.Attachment{Network: a.network.Name, Container: id, IfName: IfName}
}

// binding returns the binding of an attachment, nil if it has none.
func (a *Attacher) binding(key ecs.Attachment) (*ecs.Binding, error) {
	s, err := a.bindings.Snapshot()
	if err != nil {
		return nil, err
	}
	for _, b := range s.All() {
		if b.Attachment == key {
			return b, nil
		}
	}
	return nil, nil
}

// addresses are those of our interface in a network namespace, none if it has no such
// interface.
func addresses(netns string) ([]netip.Addr, error) {
	all, err := link.Addresses(netns)
	var ours []netip.Addr
	for _, addr := range all {
		if addr.IfName == IfName {
			ours = append(ours, addr.Addr())
		}
	}
	return ours, err
}

func runtimeConf(key ecs.Attachment, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: key.Container, IfName: key.IfName, NetNS: netns}
}

// How the lock is held. Whoever attaches or detaches one container by hand has it alone. The
// services of the host, which each do one thing to a container at a time, share it.
const (
	exclusive = true
	shared    = false
)

// lock waits for the lock and returns what frees it.
func (a *Attacher) lock(ctx context.Context, exclusive bool) (free func(), err error) {
	dir := filepath.Dir(a.DB)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the bindings file: %w", err)
	}
	f, err := bindingdb.Lock(ctx, filepath.Join(dir, "attach.lock"), exclusive)
	if err != nil {
		return nil, fmt.Errorf("waiting for others that attach containers: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
