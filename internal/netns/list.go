package netns

import (
	"bufio"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Ref is an ID with a path that leads to the namespace.
type Ref struct {
	ID
	Path string
}

// List returns each network namespace of the machine once, by the path where it is mounted,
// or else by the process with the lowest ID in it.
func List() ([]Ref, error) {
	paths, err := mounted()
	if err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	slices.SortFunc(processes, func(a, b string) int { return cmp.Compare(pid(a), pid(b)) })
	seen := make(map[ID]bool)
	var all []Ref
	for _, path := range append(paths, processes...) {
		id, err := Identify(path)
		if err != nil || seen[id] { // a process that has ended is no error
			continue
		}
		seen[id] = true
		all = append(all, Ref{id, path})
	}
	return all, nil
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
