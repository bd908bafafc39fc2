package attach

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// Survey returns the bindings that the host's veths and the network namespaces bear out:
// attachment, addresses, namespace and time. What a runtime said of the task is not in
// them. Where a port is guarded, its addresses are those that the guard lets out, since a
// task may have given itself others. Lost are the veths whose addresses were not found.
func Survey() (found []ecs.Binding, lost []link.Veth, err error) {
	host, err := link.OpenHost()
	if err != nil {
		return nil, nil, err
	}
	defer host.Close()
	veths, err := host.Veths()
	if err != nil {
		return nil, nil, err
	}
	ends, err := taskEnds()
	if err != nil {
		return nil, nil, err
	}
	now, clock := time.Now().UTC(), bootclock.Now()
	for _, v := range veths {
		b := ecs.Binding{Attachment: v.Attachment, Created: now.Add(v.Since - clock), Since: v.Since}
		if i := slices.IndexFunc(ends, func(e end) bool { return e.of(v) }); i >= 0 {
			b.Netns, b.NetnsID, b.Addrs = ends[i].path, ends[i].ino, ends[i].Addrs
		}
		guarded, err := guard.Addrs(v.Name)
		if err != nil {
			return nil, nil, err
		}
		if len(guarded) > 0 {
			b.Addrs = only(guarded, b.Addrs)
		}
		if len(b.Addrs) == 0 {
			lost = append(lost, v)
			continue
		}
		found = append(found, b)
	}
	return found, lost, nil
}

// only returns addrs, each with the length of its subnet where that is in has.
func only(addrs []netip.Addr, has []netip.Prefix) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(addrs))
	for i, addr := range addrs {
		prefixes[i] = netip.PrefixFrom(addr, addr.BitLen())
		for _, p := range has {
			if p.Addr() == addr {
				prefixes[i] = p
			}
		}
	}
	return prefixes
}

// An end is a task's end of a veth pair.
type end struct {
	link.Peer
	namespace
}

// of reports whether it is the other end of v. An index is unique in one namespace only.
func (e end) of(v link.Veth) bool { return e.Other == v.Index && e.Netns == v.TaskNetns }

// taskEnds finds the ends of veth pairs in all network namespaces but this one.
func taskEnds() ([]end, error) {
	all, err := namespaces()
	if err != nil {
		return nil, err
	}
	var ends []end
	for _, ns := range all {
		peers, err := link.Peers(ns.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, p := range peers {
			ends = append(ends, end{p, ns})
		}
	}
	return ends, nil
}

// A namespace is a network namespace with a path that leads to it.
type namespace struct {
	path string
	inode
}

// namespaces returns each network namespace of the machine but this one, by the path where
// it is mounted, or that of the process with the lowest ID in it.
func namespaces() ([]namespace, error) {
	paths, err := mounted()
	if err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	slices.SortFunc(processes, func(a, b string) int { return cmp.Compare(pid(a), pid(b)) })
	seen := make(map[inode]bool)
	own, err := identify("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("looking at this network namespace: %w", err)
	}
	seen[own] = true
	var distinct []namespace
	for _, path := range append(paths, processes...) {
		id, err := identify(path)
		if err != nil || seen[id] { // a process that has ended is no error
			continue
		}
		seen[id] = true
		distinct = append(distinct, namespace{path, id})
	}
	return distinct, nil
}

// An inode tells network namespaces apart, whatever their paths.
type inode struct{ dev, ino uint64 }

func identify(netns string) (inode, error) {
	info, err := os.Stat(netns)
	if err != nil {
		return inode{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return inode{uint64(st.Dev), st.Ino}, nil
}

// pid is that in a path below /proc.
func pid(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[2])
	return n
}

// mounted returns where network namespaces are mounted. Lines of mountinfo have the root
// of the mount, here "net:[inode]", in the fourth field and the mount point in the fifth.
func mounted() ([]string, error) {
	mounts, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	var points []string
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if field := strings.Fields(lines.Text()); len(field) > 4 && strings.HasPrefix(field[3], "net:[") {
			points = append(points, field[4])
		}
	}
	return points, lines.Err()
}
