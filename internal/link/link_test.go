package link

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

var attachment = ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "eth0"}

// onHost runs fn in a fresh namespace that stands for a host.
func onHost(t *testing.T, fn func(*Host) error) *testnet.Namespace {
	t.Helper()
	host := testnet.T(t)
	in(t, host, fn)
	return host
}

func in(t *testing.T, host *testnet.Namespace, fn func(*Host) error) {
	t.Helper()
	err := host.Do(func() error {
		h, err := current(t)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// current opens the calling thread's namespace as a host.
func current(t *testing.T) (*Host, error) {
	ns, err := netns.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = ns.Close() })
	return Open(ns)
}

func openTask(t *testing.T) *Task {
	t.Helper()
	task, err := OpenTask(testnet.T(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(task.Close)
	return task
}

// links names the interfaces of the calling thread's namespace.
func links() (string, error) {
	all, err := netlink.LinkList()
	var names []string
	for _, l := range all {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " "), err
}

// runIP runs iproute2, which is not ours, in a namespace.
func runIP(t *testing.T, ns *testnet.Namespace, words string) {
	t.Helper()
	cmd := exec.Command("ip", strings.Fields(words)...)
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	if err := ns.Run(cmd); err != nil {
		t.Fatalf("ip %s: %v\n%s", words, err, out)
	}
}
