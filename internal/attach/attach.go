// Package attach gives Docker containers an attachment to the tasks' bridge, as a container
// runtime would: it finds a container's network namespace and runs the CNI plugins for it.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/cniedge"
	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
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
	// Netns is the network namespace that the bridge stands in. Host is the host's own, in
	// which host ends of tasks may stand too: those of an earlier mode. They may be one; nil
	// is the same as Netns.
	Netns, Host *netns.NS
	// PluginNetns is what the plugins are told of where the bridge stands, beyond what their
	// configuration says: "host", a path, or "" for nothing.
	PluginNetns string
}

// An Attacher attaches containers and detaches them. It may be used by many goroutines,
// and beside others on the host.
type Attacher struct {
	Config
	network  *libcni.NetworkConfigList
	bridges  []string // those that the network's attachments are on
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
	return &Attacher{
		Config:   c,
		network:  network,
		bridges:  bridgesOf(network, c.Bridge),
		cni:      libcni.NewCNIConfigWithCacheDir(c.PluginPath, c.cache(), &programs{stderr: os.Stderr}),
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
	if err := a.restoreMissing(ctx); err != nil {
		return Attached{}, err
	}
	done, err := a.add(ctx, owner)
	if err == nil && done.Already && a.check(ctx, owner) != nil {
		return a.renew(ctx, owner)
	}
	return done, err
}

// Detach undoes Attach. It also takes the ID of a container that is gone, and without the
// daemon a full ID. It returns what was detached, or nil if there was nothing: without
// addresses that is what an ADD has left that was cut short.
func (a *Attacher) Detach(ctx context.Context, name string) (*ecs.Binding, error) {
	owner, err := a.owner(ctx, name)
	id := owner.ID
	switch {
	case errors.Is(err, docker.ErrNoContainer), errors.Is(err, ecs.ErrDockerUnavailable) && isFullID(name):
		id = name
	case err != nil && !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrHostNetwork):
		return nil, err
	}
	if err := utils.ValidateContainerID(id); err != nil {
		return nil, nil // it can't have been attached
	}
	free, err := a.lock(ctx, exclusive)
	if err != nil {
		return nil, err
	}
	defer free()
	left, err := a.remains(a.key(id))
	if err != nil {
		return nil, err
	}
	return a.remove(ctx, a.key(id), left)
}

// add attaches a container that owns its namespace, unless it is whole already. What is left
// of an earlier life of the container, or of an ADD that was cut short, is removed first.
func (a *Attacher) add(ctx context.Context, c docker.Container) (Attached, error) {
	left, err := a.remains(a.key(c.ID))
	if err != nil {
		return Attached{}, err
	}
	whole, err := a.whole(c, left)
	switch {
	case err != nil:
		return Attached{}, err
	case whole:
		return Attached{c, left.bound, true}, nil
	case left.none():
		return a.anew(ctx, c)
	}
	return a.renew(ctx, c)
}

// renew attaches a container after a DEL.
func (a *Attacher) renew(ctx context.Context, c docker.Container) (Attached, error) {
	if err := a.del(ctx, a.key(c.ID), netns.Path(c.Pid), always); err != nil {
		return Attached{}, err
	}
	return a.anew(ctx, c)
}

// anew attaches a container that has no remains of an earlier ADD. After an ADD that fails it
// sends a DEL: the plugin that failed has undone its own part, but the plugins before it in the
// chain have not.
func (a *Attacher) anew(ctx context.Context, c docker.Container) (Attached, error) {
	key, path := a.key(c.ID), netns.Path(c.Pid)
	list, err := a.configure(a.network, c.Labels)
	if err != nil {
		return Attached{}, err
	}
	if err := a.setMark(key); err != nil {
		return Attached{}, err
	}
	verb, cancel := inFull(ctx)
	defer cancel()
	if _, err := a.cni.AddNetworkList(verb, list, runtimeConf(key, path)); err != nil {
		return Attached{}, errors.Join(fmt.Errorf("attaching %s: %w", c.Name, err), a.del(ctx, key, path, always))
	}
	bound, err := a.binding(key)
	if err == nil && bound == nil {
		err = fmt.Errorf("attaching %s: network %s recorded no address in %s: expected a plugin whose ipam is ecs-ipam", c.Name, a.network.Name, a.DB)
	}
	if err == nil {
		err = a.clearMark(key)
	}
	return Attached{Container: c, Binding: bound}, err
}

// remove takes away what there is of an attachment, and returns it. The plugins are asked
// even if that is nothing: of what they did, not all shows.
func (a *Attacher) remove(ctx context.Context, key ecs.Attachment, left remains) (*ecs.Binding, error) {
	path := ""
	if left.bound != nil {
		if id, err := netns.Identify(left.bound.Netns); err == nil && id.Ino == left.bound.NetnsID {
			path = left.bound.Netns // it lives
		}
	}
	err := a.del(ctx, key, path, always)
	switch {
	case left.none():
		return nil, err
	case left.bound == nil:
		return &ecs.Binding{Attachment: key}, err
	}
	return left.bound, err
}

// always is the condition of a DEL that has none.
const always time.Duration = 0

// del runs the plugins' DEL. With a time since boot other than [always],
// they leave alone what was made at that time or later.
func (a *Attacher) del(ctx context.Context, key ecs.Attachment, netns string, before time.Duration) error {
	list, err := a.configuration(key)
	if err != nil {
		return err
	}
	list, err = a.configure(list, nil)
	if err == nil && before != always {
		list, err = inject(list, map[string]any{cniedge.KeyBefore: strconv.FormatInt(int64(before), 10)})
	}
	if err != nil {
		return err
	}
	verb, cancel := inFull(ctx)
	defer cancel()
	if err := a.cni.DelNetworkList(verb, list, runtimeConf(key, netns)); err != nil {
		return fmt.Errorf("detaching %s: %w", key, err)
	}
	return a.clearMark(key)
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
