package main

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The page's socket in the file system is root's alone, and what an earlier run left in
// its place is no obstacle.
func TestAdminSocketIsRootsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := openAdmin("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s has the mode %v (%v), want 0600", path, info.Mode(), err)
	}
}

// The kernel's table of sockets is read as it writes it: what listens is found, IPv6 too,
// and what does not is not.
func TestListeners(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().(*net.TCPAddr).AddrPort()
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		if all, err := listeners(); err != nil || !slices.Contains(all, addr) {
			t.Errorf("%s is not among %v (%v)", addr, all, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if all, err := listeners(); err != nil || slices.Contains(all, addr) {
			t.Errorf("%s is still among %v (%v)", addr, all, err)
		}
	}
}
