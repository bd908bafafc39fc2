package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/dev/testnet"
)

// Attachments at once: no failure, no duplicate, although the first ones race to make the
// bridge.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *host) {
		before := h.things(t)
		const n = 64
		tasks := make([]*testnet.Namespace, n)
		for i := range tasks {
			tasks[i] = testnet.T(t)
		}
		results := make([]*current.Result, n)
		together(t, n, func(i int) (err error) {
			results[i], err = h.run(h.call("ADD", fmt.Sprintf("c%d", i), tasks[i].Path(), conf()))
			return err
		})
		seen := make(map[string]int)
		for i, r := range results {
			addr := address(t, r)
			if other, ok := seen[addr]; ok {
				t.Errorf("tasks %d and %d have %s", i, other, addr)
			}
			seen[addr] = i
		}
		for _, i := range []int{0, n / 2, n - 1} {
			reach(t, h, tasks[i])
		}
		together(t, n, func(i int) error {
			_, err := h.run(h.call("DEL", fmt.Sprintf("c%d", i), tasks[i].Path(), conf()))
			return err
		})
		h.left(t, before)
	})
}

func together(t *testing.T, n int, do func(int) error) {
	t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = do(i) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestTwoNetworksOfOneTask(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *host) {
		task := testnet.T(t)
		before := h.things(t)
		second := `{"cniVersion": "1.1.0", "name": "second", "bridge": "second-bridge", "guard": "source",
			"ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.77.0.0/24", "ipv4-routes": [{"dst": "10.78.0.0/16"}]}}`
		another := func(verb string) error {
			call := h.call(verb, "c1", task.Path(), second)
			call.IfName = "eth1"
			_, err := h.run(call)
			return err
		}
		h.must(t, "ADD", "c1", task.Path(), conf())
		if err := another("ADD"); err != nil {
			t.Fatal(err)
		}
		reach(t, h, task)
		l, err := h.Listen("tcp", "10.77.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		c, err := task.DialContext(ctx, "tcp", "10.77.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		h.must(t, "DEL", "c1", task.Path(), conf())
		if err := another("DEL"); err != nil {
			t.Fatal(err)
		}
		h.left(t, before)
	})
}

// Subnets that do not overlap may share a bridge, whose MTU is the least of its ports'.
func TestTwoSubnetsOnOneBridge(t *testing.T) {
	t.Parallel()
	h, first, second := newHost(t), testnet.T(t), testnet.T(t)
	before := h.things(t)
	other := `{"cniVersion": "1.1.0", "name": "other", "mtu": 1400, "guard": "source",
		"ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.77.0.0/24"}}`
	h.must(t, "ADD", "c1", first.Path(), conf())
	result := h.must(t, "ADD", "c1", second.Path(), other)
	if got := address(t, result); got != "10.77.0.2/24" {
		t.Errorf("address %s", got)
	}
	reach(t, h, first)
	reach(t, h, second)
	mtu := func(ns *testnet.Namespace, link string) string {
		_, rest, _ := strings.Cut(ns.Sh(t, "ip -o link show "+link), " mtu ")
		return strings.Fields(rest)[0]
	}
	if got := mtu(first, "eth0") + " " + mtu(second, "eth0") + " " + mtu(h.Namespace, "ecs-bridge"); got != "1500 1400 1400" {
		t.Errorf("the tasks and the bridge have MTUs of %s", got)
	}
	h.must(t, "GC", "", "", strings.TrimSuffix(other, "}")+`, "cni.dev/valid-attachments": []}`)
	reach(t, h, first)
	if got := mtu(h.Namespace, "ecs-bridge"); got != "1500" {
		t.Errorf("the bridge has an MTU of %s when the smaller port is gone", got)
	}
	h.must(t, "DEL", "c1", second.Path(), other)
	h.must(t, "DEL", "c1", first.Path(), conf())
	h.left(t, before)
}

// A second interface in the same network: the routes are the first one's.
func TestTwoInterfacesInOneNetwork(t *testing.T) {
	t.Parallel()
	h, task := newHost(t), testnet.T(t)
	before := h.things(t)
	second := func(verb string) error {
		call := h.call(verb, "c1", task.Path(), conf())
		call.IfName = "eth1"
		_, err := h.run(call)
		return err
	}
	h.must(t, "ADD", "c1", task.Path(), conf())
	if err := second("ADD"); err != nil {
		t.Fatal(err)
	}
	reach(t, h, task)
	if err := second("DEL"); err != nil {
		t.Fatal(err)
	}
	reach(t, h, task)
	h.must(t, "DEL", "c1", task.Path(), conf())
	h.left(t, before)
}
