package link

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

func TestNamesFitAndDiffer(t *testing.T) {
	t.Parallel()
	seen := make(map[string]ecs.Attachment)
	for _, a := range []ecs.Attachment{
		attachment,
		{Network: "ecs-task", Container: "c1", IfName: "eth1"},
		{Network: "ecs-task", Container: "c2", IfName: "eth0"},
		{Network: "other", Container: "c1", IfName: "eth0"},
		{Network: "ecs-taskc1", Container: "", IfName: "eth0"},
		{Network: strings.Repeat("n", 100), Container: strings.Repeat("c", 100), IfName: "fifteen-bytes-x"},
	} {
		name := HostName(a)
		if len(name) != 15 {
			t.Errorf("%s has %d bytes, want 15", name, len(name))
		}
		if other, ok := seen[name]; ok {
			t.Errorf("%v and %v are both %s", a, other, name)
		}
		seen[name] = a
	}
}

func TestAliasTellsTheAttachment(t *testing.T) {
	t.Parallel()
	const now = 40*time.Hour + 1
	if a, since, guard, ok := parseAlias(alias(attachment, now, "source")); !ok || a != attachment || since != now || guard != "source" {
		t.Errorf("got %v, %v, %s, %v", a, since, guard, ok)
	}
	for _, foreign := range []string{"", "uplink", "taskmeta", "taskmeta a b c not-a-time strict", "taskmeta a b c 1", "taskmeta a b c 1 strict f"} {
		if _, _, _, ok := parseAlias(foreign); ok {
			t.Errorf("%q is taken for ours", foreign)
		}
	}
}

func TestMakeVethLeavesNothingWhenItCannot(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		before, err := links()
		if err != nil {
			return err
		}
		task := openTask(t)
		lo := ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "lo"}
		if _, err := h.MakeVeth(task, lo, b, 1500, time.Hour, "strict"); !errors.Is(err, ErrNameTaken) {
			t.Errorf("a taken name: %v", err)
		}
		gone := Bridge{Name: "br1", Index: 4242}
		if _, err := h.MakeVeth(task, attachment, gone, 1500, time.Hour, "strict"); err == nil {
			t.Error("a bridge that is gone is no error")
		}
		long := ecs.Attachment{Network: "ecs-task", Container: strings.Repeat("c", 250), IfName: "eth0"}
		if _, err := h.MakeVeth(task, long, b, 1500, time.Hour, "strict"); err == nil || !strings.Contains(err.Error(), "258 bytes") {
			t.Errorf("names that are too long: %v", err)
		}
		after, err := links()
		if after != before {
			t.Errorf("left %q where %q was", after, before)
		}
		return err
	})
}

func TestVethIsHeldAndRemoved(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		task := openTask(t)
		v, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict")
		if err != nil {
			return err
		}
		if _, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict"); !errors.Is(err, ecs.ErrHeld) {
			t.Errorf("a second pair: %v", err)
		}
		if _, ok, err := h.Veth(attachment); err != nil || !ok {
			t.Errorf("the first pair: %v, %v", ok, err)
		}
		for _, when := range []string{"is there", "is gone"} {
			var seen string
			err := h.DelVeth(v, func() (err error) {
				seen, err = links()
				return err
			})
			if err != nil || seen != "lo br0" {
				t.Errorf("removed while it %s: %q was there, %v", when, seen, err)
			}
		}
		if _, ok, err := h.Veth(attachment); ok || err != nil {
			t.Errorf("after it was removed: %v, %v", ok, err)
		}
		return nil
	})
}

// A DEL beside the ADD may remove the pair as soon as it is there.
func TestVethThatIsRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	var b Bridge
	host := onHost(t, func(h *Host) (err error) {
		b, err = h.EnsureBridge("br0", 1500)
		return err
	})
	task, made, removed := openTask(t), make(chan struct{}), make(chan error, 1)
	go func() {
		removed <- host.Do(func() error {
			h, err := current(t)
			if err != nil {
				return err
			}
			defer h.Close()
			remove := linkStep(unix.RTM_DELLINK, 0, "removing", nl.NewIfInfomsg(unix.AF_UNSPEC), HostName(attachment))
			remove.Fine = unix.ENODEV
			for {
				select {
				case <-made:
					return nil
				default:
				}
				if err := h.Do(remove); err != nil {
					return err
				}
			}
		})
	}()
	in(t, host, func(h *Host) error {
		for range 100 {
			if v, err := h.MakeVeth(task, attachment, b, 1500, time.Hour, "strict"); err == nil && v.Name == "" {
				t.Error("no error, and no veth")
			}
		}
		return nil
	})
	close(made)
	if err := <-removed; err != nil {
		t.Error(err)
	}
}

func TestVethOfSomebodyElseIsNotOurs(t *testing.T) {
	t.Parallel()
	onHost(t, func(h *Host) error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: HostName(attachment)}, PeerName: "peer"}); err != nil {
			return err
		}
		if _, ok, err := h.Veth(attachment); ok || err != nil {
			t.Errorf("got %v, %v", ok, err)
		}
		all, err := h.Veths()
		if len(all) != 0 {
			t.Errorf("lists %v", all)
		}
		return err
	})
}

// indices are those of the interfaces of a namespace, by name.
func indices(t *testing.T, ns *testnet.Namespace) map[string]int {
	t.Helper()
	all := make(map[string]int)
	if err := ns.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			all[l.Attrs().Name] = l.Attrs().Index
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// The task's end comes after every other interface of the task, whatever is added later, and
// whatever the host has.
func TestTasksEndIsTheLastInterface(t *testing.T) {
	t.Parallel()
	host, ns := testnet.T(t), testnet.T(t)
	for _, busy := range []*testnet.Namespace{host, ns} { // which has the index already
		runIP(t, busy, fmt.Sprintf("link add busy index %d type veth peer name peer", lastIndex))
	}
	runIP(t, host, fmt.Sprintf("link add eth0 index %d type veth peer name eth1", lastIndex+lastIndexStep))
	task, err := OpenTask(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer task.Close()
	second := attachment
	second.IfName = "eth1"
	in(t, host, func(h *Host) error {
		b, err := h.EnsureBridge("br0", 1500)
		if err != nil {
			return err
		}
		add := func(a ecs.Attachment) Veth {
			v, err := h.MakeVeth(task, a, b, 1500, time.Hour, "strict")
			if err != nil {
				t.Error(err)
			}
			return v
		}
		first := add(attachment)
		add(second)
		runIP(t, ns, "link add later type veth peer name peer2")
		has := indices(t, ns)
		if last := max(has["later"], has["peer2"], has["busy"]); has["eth0"] <= last || has["eth1"] <= last || has["later"] >= lastIndex {
			t.Errorf("the interfaces of the task are %v", has)
		}
		was := has["eth0"]
		if err := h.DelVeth(first, func() error { return nil }); err != nil {
			return err
		}
		if add(attachment); indices(t, ns)["eth0"] != was {
			t.Errorf("made anew, eth0 is %d: it was %d", indices(t, ns)["eth0"], was)
		}
		for name, index := range indices(t, host) {
			if strings.HasPrefix(name, "ecsv") && index >= lastIndex {
				t.Errorf("the host's end has the index %d", index)
			}
		}
		return nil
	})
}

// Attachments that are added to one namespace at once take an index each.
func TestManyPairsOfOneTask(t *testing.T) {
	t.Parallel()
	host, ns := testnet.T(t), testnet.T(t)
	var b Bridge
	in(t, host, func(h *Host) (err error) {
		b, err = h.EnsureBridge("br0", 1500)
		return err
	})
	const n = 8
	errs := make(chan error, n)
	for i := range n {
		go func() {
			errs <- func() error {
				task, err := OpenTask(ns.Path())
				if err != nil {
					return err
				}
				defer task.Close()
				return host.Do(func() error {
					h, err := current(t)
					if err != nil {
						return err
					}
					defer h.Close()
					_, err = h.MakeVeth(task, ecs.Attachment{Network: "n", Container: "c", IfName: fmt.Sprint("eth", i)}, b, 1500, time.Hour, "strict")
					return err
				})
			}()
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	has := indices(t, ns)
	for i := range n {
		if has[fmt.Sprint("eth", i)] < lastIndex {
			t.Errorf("the interfaces of the task are %v", has)
		}
	}
}
