package main

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities are the ones that serve still needs once its sockets are open, by what
// it was asked to do. Each is named with its reason in docs/security.md.
func capabilities(s settings) []int {
	var keep []int
	if s.hasBridge() || s.autoAttach { // the plugins do the same
		keep = append(keep,
			unix.CAP_NET_ADMIN, // bridge, addresses, nftables, ending sockets
			unix.CAP_NET_RAW,   // SO_BINDTODEVICE once more, when the bridge was made again
		)
	}
	if s.hasBridge() || s.witness == witnessRequired || s.autoAttach {
		keep = append(keep,
			unix.CAP_SYS_ADMIN,  // entering a task's network namespace
			unix.CAP_SYS_PTRACE, // finding it by a process of another user's
		)
	}
	return keep
}

// keepOnly gives up, on every thread and for good, all capabilities of the process but
// those it has of keep.
func keepOnly(keep []int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // the low and the high 32 bits
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("reading the process's capabilities: %w", err)
	}
	var mask [2]uint32
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
	}
	for i := range sets {
		sets[i].Permitted &= mask[i]
		sets[i].Effective = sets[i].Permitted
		sets[i].Inheritable = 0
	}
	// Capabilities are a thread's: all of them give up at once.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0); errno != 0 {
		return fmt.Errorf("giving up capabilities: %w", errno)
	}
	return nil
}
