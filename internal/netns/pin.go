package netns

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// PinPath is where the endpoint's own namespace is pinned: beside the bindings file.
func PinPath(db string) string { return filepath.Join(filepath.Dir(db), "netns") }

// nsGetType is NS_GET_NSTYPE of linux/nsfs.h.
const nsGetType = 0xb703

// Pinned opens the network namespace that is mounted at path; [fs.ErrNotExist] if there is
// none, be the path missing or something else.
func Pinned(path string) (*NS, error) {
	ns, err := Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	var of unix.Statfs_t
	if err := unix.Fstatfs(ns.fd, &of); err != nil {
		return nil, errors.Join(&os.PathError{Op: "statfs", Path: path, Err: err}, ns.Close())
	}
	if of.Type == unix.NSFS_MAGIC {
		if kind, err := unix.IoctlRetInt(ns.fd, nsGetType); err == nil && kind == unix.CLONE_NEWNET {
			return ns, nil
		}
	}
	_ = ns.Close() // nothing was done with it
	return nil, &fs.PathError{Op: "looking for a network namespace at", Path: path, Err: fs.ErrNotExist}
}

// Pin opens the namespace that is mounted at path, or makes an empty one that forwards
// nothing and mounts it there. The process's own, which may be mounted there too, is not the
// one. Several processes may try at once: all get the same. It needs CAP_SYS_ADMIN.
func Pin(path string) (*NS, error) {
	if ns, err := pinnedOther(path); !errors.Is(err, fs.ErrNotExist) {
		return ns, err
	}
	unlock, err := prepare(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if ns, err := pinnedOther(path); !errors.Is(err, fs.ErrNotExist) {
		return ns, err
	}
	if err := unmount(path); err != nil {
		return nil, err
	}
	if err := makeAt(path); err != nil {
		return nil, fmt.Errorf("making the network namespace %s: %w", path, err)
	}
	return Pinned(path)
}

// pinnedOther is [Pinned] for a namespace that is not the process's own.
func pinnedOther(path string) (*NS, error) {
	ns, err := Pinned(path)
	if err != nil {
		return nil, err
	}
	own, err := Own()
	if err == nil && ns.id != own.id {
		return ns, nil
	}
	return nil, cmp.Or(err, errors.Join(fs.ErrNotExist, ns.Close()))
}

// PinAt mounts the namespace at path, in place of one that is mounted there.
func (n *NS) PinAt(path string) error {
	unlock, err := prepare(path)
	if err != nil {
		return err
	}
	defer unlock()
	if err := unmount(path); err != nil {
		return err
	}
	return mount(fmt.Sprintf("/proc/self/fd/%d", n.fd), path)
}

// Unpin takes a namespace away from path, and the file that it was mounted on. It is no
// error if there is none. The namespace exists as long as something is in it or holds it
// open.
func Unpin(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := unmount(path); err != nil {
		return err
	}
	return os.Remove(path)
}

// prepare makes the file that a namespace is mounted on, and keeps others from doing the
// same until it is called back.
func prepare(path string) (unlock func(), err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return func() { _ = d.Close() }, nil
}

// quiet are the settings of a new namespace, which the kernel else takes from the initial
// one (net.core.devconf_inherit_init_net): nothing is forwarded, and no setting of the host's
// keeps a task from being answered.
var quiet = []struct{ key, value string }{
	{"ipv4/ip_forward", "0"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/arp_ignore", "0"},
	{"ipv4/conf/default/arp_ignore", "0"},
	{"ipv4/conf/all/arp_filter", "0"},
	{"ipv4/conf/default/arp_filter", "0"},
	{"ipv6/conf/all/forwarding", "0"},
}

// New makes an empty namespace that forwards nothing and is mounted nowhere. It needs
// CAP_SYS_ADMIN.
func New() (ns *NS, err error) {
	err = inNew(func() (err error) {
		ns, err = Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil && ns != nil { // it is there, but the way back was not
		err = errors.Join(err, ns.Close())
	}
	return ns, err
}

func makeAt(path string) error {
	return inNew(func() error { return mount("/proc/thread-self/ns/net", path) })
}

// inNew makes a namespace, and runs do in it on a thread of its own, which comes back or
// ends.
func inNew(do func() error) error {
	own, err := Own()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- os.NewSyscallError("unshare", err)
			return
		}
		var err error
		for _, s := range quiet {
			e := os.WriteFile("/proc/sys/net/"+s.key, []byte(s.value), 0)
			if e != nil && !errors.Is(e, fs.ErrNotExist) { // a kernel without IPv6
				err = errors.Join(err, e)
			}
		}
		if err == nil {
			err = do()
		}
		if back := unix.Setns(own.fd, unix.CLONE_NEWNET); back != nil {
			done <- errors.Join(err, os.NewSyscallError("setns", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func mount(from, path string) error {
	if err := unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mounting a network namespace at", Path: path, Err: err}
	}
	return nil
}

// unmount takes away every namespace that is mounted at path.
func unmount(path string) error {
	for {
		var of unix.Statfs_t
		if err := unix.Statfs(path, &of); errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return &os.PathError{Op: "statfs", Path: path, Err: err}
		}
		if of.Type != unix.NSFS_MAGIC {
			return nil
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "unmounting", Path: path, Err: err}
		}
	}
}
