package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// The remains of an attachment are what there is of it: all, some after a plugin or its
// caller was killed, or nothing.
type remains struct {
	bound *ecs.Binding
	veth  *link.Veth // the host's end
	// cut is set if an ADD was begun and has not ended.
	cut bool
	// cached is set if libcni keeps the ADD's result.
	cached bool
}

// none reports whether there is nothing to undo.
func (r remains) none() bool { return r.bound == nil && r.veth == nil && !r.cut && !r.cached }

// remains looks for what there is of an attachment.
func (a *Attacher) remains(key ecs.Attachment) (r remains, err error) {
	if r.bound, err = a.binding(key); err != nil {
		return r, err
	}
	for _, ns := range a.places() {
		if r.veth, err = vethIn(ns, key); err != nil || r.veth != nil {
			break
		}
	}
	r.cut = exists(a.mark(key))
	r.cached = exists(a.cached(key))
	return r, err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func vethIn(ns *netns.NS, key ecs.Attachment) (*link.Veth, error) {
	host, err := link.Open(ns)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	v, ok, err := host.Veth(key)
	if err != nil || !ok {
		return nil, err
	}
	return &v, nil
}

// whole reports whether the container has all that an ADD leaves, as far as that shows
// without the plugins' help: binding, veth pair, and every address in the namespace that it
// has now. No plugin of the chain may be missing, so the ADD has to have ended.
func (a *Attacher) whole(c docker.Container, r remains) (bool, error) {
	if r.bound == nil || r.veth == nil || r.cut || !r.cached && len(a.network.Plugins) > 1 {
		return false, nil
	}
	path := netns.Path(c.Pid)
	id, err := netns.Identify(path)
	if err != nil {
		return false, err
	}
	if r.bound.NetnsID != 0 && r.bound.NetnsID != id.Ino {
		return false, nil
	}
	has, err := link.Addresses(path)
	for _, p := range r.bound.Addrs {
		if !slices.ContainsFunc(has, func(a link.Address) bool { return a.IfName == IfName && a.Addr() == p.Addr() }) {
			return false, err
		}
	}
	return err == nil, err
}

// checkTime bounds a CHECK, which changes nothing and may be killed.
const checkTime = 10 * time.Second

// check asks the plugins whether an attachment is still as ADD left it, and returns what is
// not. Without the result of its ADD they cannot tell; nor do they if CHECK itself fails.
func (a *Attacher) check(ctx context.Context, c docker.Container) error {
	key := a.key(c.ID)
	if !exists(a.cached(key)) {
		return nil
	}
	list, err := a.configuration(key)
	if err == nil {
		list, err = a.configure(list, c.Labels)
	}
	if err != nil {
		return err
	}
	verb, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	err = a.cni.CheckNetworkList(verb, list, runtimeConf(key, netns.Path(c.Pid)))
	var verdict *types.Error
	if !errors.As(err, &verdict) {
		return nil
	}
	switch code := verdict.Code; {
	case code == types.ErrUnknownContainer, code == cniedge.CodeMismatch:
		return verdict
	case code == cniedge.CodeDamaged, code == cniedge.CodeNewerSchema, code < 99:
		return nil // of the caller's input, of the plugin's means, or to try again later
	}
	return verdict
}

// mark is the file that is there from before an attachment's ADD until it has ended, or was
// undone: whoever finds it without the ADD does so after a kill.
func (a *Attacher) mark(key ecs.Attachment) string {
	return filepath.Join(a.cache(), "adding", file(key))
}

// cached is the path of the file where libcni keeps the result of an attachment's ADD.
func (a *Attacher) cached(key ecs.Attachment) string {
	return filepath.Join(a.cache(), "results", file(key))
}

func (c Config) cache() string { return filepath.Join(filepath.Dir(c.DB), "cni") }

// file is libcni's name for an attachment's file.
func file(key ecs.Attachment) string {
	return key.Network + "-" + key.Container + "-" + key.IfName
}

// setMark makes the mark.
func (a *Attacher) setMark(key ecs.Attachment) error {
	path := a.mark(key)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("noting that %s is being attached: %w", key, err)
	}
	return nil
}

// clearMark removes the mark. It is no error if there is none.
func (a *Attacher) clearMark(key ecs.Attachment) error {
	if err := os.Remove(a.mark(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("noting that %s is attached, or detached: %w", key, err)
	}
	return nil
}

// noted are the attachments of our network that the marks and libcni's results name.
func (a *Attacher) noted() (keys []ecs.Attachment, err error) {
	for _, dir := range []string{"adding", "results"} {
		files, err := os.ReadDir(filepath.Join(a.cache(), dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("listing what was begun: %w", err)
		}
		for _, f := range files {
			id, ours := strings.CutPrefix(f.Name(), a.network.Name+"-")
			id, named := strings.CutSuffix(id, "-"+IfName)
			if ours && named && isFullID(id) && !slices.Contains(keys, a.key(id)) {
				keys = append(keys, a.key(id))
			}
		}
	}
	return keys, nil
}

// places are the network namespaces that host ends of veth pairs stand in.
func (c Config) places() []*netns.NS {
	if c.Host == nil || c.Host.ID() == c.Netns.ID() {
		return []*netns.NS{c.Netns}
	}
	return []*netns.NS{c.Netns, c.Host}
}
