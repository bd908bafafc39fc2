package guard

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ownUsers is the map of this process's user namespace, which stays as it is.
var ownUsers = sync.OnceValues(func() ([]byte, error) { return os.ReadFile("/proc/self/uid_map") })

// CanChangeHostNetwork reports whether a process, or what it executes, can have CAP_NET_ADMIN
// or CAP_SYS_ADMIN in the user namespace of this process, which is the host's. The kernel then
// lets it change the host's network through its end of a veth pair, and no guard holds it. A
// process that has ended can do nothing.
func CanChangeHostNetwork(pid int) bool {
	own, err := ownUsers()
	if err != nil {
		return false
	}
	its, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
	if err != nil || !bytes.Equal(own, its) { // the namespace's users as the initial one numbers them
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			bounds, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && bounds&(1<<unix.CAP_NET_ADMIN|1<<unix.CAP_SYS_ADMIN) != 0
		}
	}
	return false
}
