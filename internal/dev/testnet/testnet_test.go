package testnet_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

func TestANamespaceIsAlone(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	var names []string
	err := ns.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			names = append(names, l.Name)
		}
		return err
	})
	if err != nil || len(names) == 0 || names[0] != "lo" {
		t.Fatalf("interfaces %v, %v; want lo first", names, err)
	}
	l, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.WriteString(c, "inside")
			_ = c.Close()
		}
	}()
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("reached from outside")
	}
	c, err := ns.DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); string(got) != "inside" {
		t.Errorf("read %q, %v", got, err)
	}
}

// Who connects to a server's port before the server listens is refused. Given that same
// port for its own end, it would meet itself, and keep the server from it for a minute.
func TestAClientIsNotGivenTheResolversPort(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	err := ns.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("51680 51681"), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		c, err := ns.DialContext(t.Context(), "tcp", "127.0.0.1:51680")
		if err == nil {
			_ = c.Close()
			t.Fatalf("connected from %s, where nothing listens", c.LocalAddr())
		}
	}
	l, err := ns.Listen("tcp", "127.0.0.1:51680")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

func TestCloseEndsWhatRunsInside(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	cmd := exec.Command("sleep", "1000")
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	want, err := os.Readlink(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/net"))
	if err != nil || got != want {
		t.Errorf("the process is in %s, %v; want %s", got, err, want)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v; want it killed", err)
	}
}

func TestADockerDaemonOfItsOwn(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a Docker daemon")
	}
	ns := testnet.T(t)
	var pid string
	t.Cleanup(func() { // after the daemon's own
		if _, err := os.Stat(filepath.Join("/proc", pid)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the container runs on after its daemon was closed, which was stopped before: %v", err)
		}
	})
	d := testnet.Docker(t, ns)
	if err := d.ImportBusybox("box", nil); err != nil {
		t.Fatal(err)
	}
	id := d.Run(t, "--network", "none", "box", "/bin/sleep", "1000")
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	running, err := d.CLI("ps", "--quiet", "--no-trunc")
	if err != nil || running != id {
		t.Errorf("running after the daemon's restart: %q, %v; want %s", running, err, id)
	}
	pid = d.Pid(t, id)
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
}
