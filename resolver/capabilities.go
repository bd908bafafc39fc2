package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities are the ones that serve still needs once its sockets are open, by what
// it was asked to do and whose the daemon's socket is. Each is named with its reason in
// docs/security.md.
func capabilities(s settings, foreignSocket bool) []int {
	var keep []int
	if foreignSocket {
		keep = append(keep, unix.CAP_DAC_OVERRIDE) // connecting to it, again and again
	}
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

// isForeign reports whether the process may connect to a unix socket by CAP_DAC_OVERRIDE
// alone, as root may to that of rootless Docker. It tries without, since the permissions of
// every folder above and access control lists count too. What is not there yet, or no unix
// socket's address, is not foreign.
func isForeign(dockerHost string) (foreign bool, err error) {
	path, ok := strings.CutPrefix(dockerHost, "unix://")
	if !ok {
		return false, nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Capabilities are a thread's. This one ends with its goroutine.
		runtime.LockOSThread()
		foreign, err = refusedWithoutOverride(path)
	}()
	<-done
	return foreign, err
}

// refusedWithoutOverride leaves its thread without CAP_DAC_OVERRIDE.
func refusedWithoutOverride(path string) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false, fmt.Errorf("reading the thread's capabilities: %w", err)
	}
	sets[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return false, fmt.Errorf("giving up CAP_DAC_OVERRIDE on a thread: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	return errors.Is(unix.Connect(fd, &unix.SockaddrUnix{Name: path}), unix.EACCES), nil
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
