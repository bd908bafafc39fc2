package attach

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"

	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

// Probe attaches a network namespace of its own by the plugins, as a container's is, runs
// ask for it, and takes all of it away again, however ask or ctx end. It needs
// CAP_SYS_ADMIN. What a probe has left that was killed is freed first.
func (a *Attacher) Probe(ctx context.Context, ask func(context.Context, *netns.NS) error) (err error) {
	if err := a.collectProbes(ctx); err != nil {
		return err
	}
	ns, err := netns.New()
	if err != nil {
		return fmt.Errorf("making a network namespace to ask from, which takes CAP_SYS_ADMIN: %w", err)
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	key := ecs.Attachment{Network: ecs.ProbeNetwork, Container: "taskmeta-probe-" + rand.Text(), IfName: IfName}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD())
	list, err := a.configure(forProbes(a.network), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.del(ctx, key, path, always)) }()
	if _, err := a.cni.AddNetworkList(ctx, list, runtimeConf(key, path)); err != nil {
		return fmt.Errorf("attaching a network namespace to ask from: %w", err)
	}
	return ask(ctx, ns)
}

// forProbes is the network under the name that tells a probe's attachment from a task's.
func forProbes(list *libcni.NetworkConfigList) *libcni.NetworkConfigList {
	renamed := *list
	renamed.Name = ecs.ProbeNetwork
	return &renamed
}

// collectProbes frees what is left of probes whose process is gone, and with it their
// network namespace.
func (a *Attacher) collectProbes(ctx context.Context) error {
	gone, err := a.gone(func(b *ecs.Binding) bool { return b.IsProbe() })
	for _, b := range gone {
		err = errors.Join(err, a.del(ctx, b.Attachment, "", always))
	}
	return err
}
