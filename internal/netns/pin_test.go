package netns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if testing.Short() {
			t.Skip("needs root, to make network namespaces")
		}
		t.Fatal("needs root, to make network namespaces (run with -short to skip)")
	}
}

func TestPin(t *testing.T) {
	t.Parallel()
	needRoot(t)
	path := PinPath(filepath.Join(t.TempDir(), "sub", "bindings.db"))
	if _, err := Pinned(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before there is one: %v", err)
	}
	t.Cleanup(func() { _ = Unpin(path) })

	// Whoever makes it at the same time gets the same one.
	var wg sync.WaitGroup
	ids := make([]ID, 8)
	for i := range ids {
		wg.Go(func() {
			ns, err := Pin(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer ns.Close()
			ids[i] = ns.ID()
		})
	}
	wg.Wait()
	own, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id != ids[0] || id == own.ID() {
			t.Fatalf("the namespaces are %v, and this process's is %v", ids, own.ID())
		}
	}
}

// One that is open is pinned again, in place of another. The process's own is no namespace
// apart.
func TestPinAgain(t *testing.T) {
	t.Parallel()
	needRoot(t)
	path := filepath.Join(t.TempDir(), "netns")
	t.Cleanup(func() { _ = Unpin(path) })
	own, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := Pin(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(func() error {
		forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if strings.TrimSpace(string(forward)) != "0" {
			t.Errorf("it forwards: %q", forward)
		}
		return err
	}); err != nil {
		t.Error(err)
	}

	if err := Unpin(path); err != nil {
		t.Fatal(err)
	}
	other, err := Pin(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := ns.PinAt(path); err != nil {
		t.Fatal(err)
	}
	if now, err := Identify(path); err != nil || now != ns.ID() {
		t.Errorf("at the path is %v (%v), want %v", now, err, ns.ID())
	}
	if err := own.PinAt(path); err != nil {
		t.Fatal(err)
	}
	apart, err := Pin(path)
	if err != nil {
		t.Fatal(err)
	}
	defer apart.Close()
	if apart.ID() == own.ID() {
		t.Error("Pin returns the process's own namespace")
	}
	for range 2 {
		if err := Unpin(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

// What is no network namespace is none, and stays as it is.
func TestWhatIsNoPin(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := t.TempDir()
	file, mnt := filepath.Join(dir, "file"), filepath.Join(dir, "mnt")
	for _, path := range []string{file, mnt} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("/proc/self/ns/uts", mnt, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	for _, path := range []string{file, mnt} {
		if _, err := Pinned(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
