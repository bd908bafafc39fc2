package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/dev/testnet"
)

func TestGCKeepsWhatIsValid(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *host) {
		other := strings.Replace(conf(), "ecs-task", "another", 1)
		tasks := make(map[string]*testnet.Namespace)
		for i := range 8 {
			name := fmt.Sprintf("c%d", i)
			tasks[name] = testnet.T(t)
			h.must(t, "ADD", name, tasks[name].Path(), conf())
		}
		task := testnet.T(t)
		h.must(t, "ADD", "c0", task.Path(), other)
		h.Sh(t, "ip link add ecsv-mine type veth peer name peer")

		var valid []types.GCAttachment
		for i := range 4 {
			valid = append(valid, types.GCAttachment{ContainerID: fmt.Sprintf("c%d", i), IfName: "eth0"})
		}
		list, err := json.Marshal(valid)
		if err != nil {
			t.Fatal(err)
		}
		h.must(t, "GC", "", "", conf()) // without a list there is nothing to go by
		if n := len(h.bindings(t)); n != 9 {
			t.Errorf("without a list %d of 9 bindings are kept", n)
		}
		h.must(t, "GC", "", "", conf(`"cni.dev/valid-attachments": `+string(list)))
		for i := range 8 {
			name := fmt.Sprintf("c%d", i)
			if i < 4 {
				reach(t, h, tasks[name])
			} else if out := tasks[name].Sh(t, "ip -o link"); strings.Contains(out, "eth0") {
				t.Errorf("%s has its interface still", name)
			}
		}
		reach(t, h, task)
		after := h.things(t)
		if n := strings.Count(after.Chains, "in-ecsv"); n != 5 || len(after.Bindings) != 5 || strings.Count(after.Neighbours, "PERMANENT") != 5 {
			t.Errorf("5 of 9 were valid: %+v", after)
		}
		h.Sh(t, "ip link show ecsv-mine")
	})
}

// What is added while a GC runs is not on its list, and is in use: neither plugin takes it
// away, although the IPAM plugin starts after it was added.
func TestGCBesideAdd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const n = 6
	tasks := make(map[string]*testnet.Namespace)
	add := func(name string) {
		tasks[name] = testnet.T(t)
		h.must(t, "ADD", name, tasks[name].Path(), conf())
	}
	var valid []types.GCAttachment
	for i := range n {
		name := fmt.Sprintf("old%d", i)
		add(name)
		if i%2 == 0 {
			valid = append(valid, types.GCAttachment{ContainerID: name, IfName: "eth0"})
		}
	}
	list, err := json.Marshal(valid)
	if err != nil {
		t.Fatal(err)
	}
	gc := h.call("GC", "", "", "").Command(t.Context())
	gc.Stdin = nil
	stdin, err := gc.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(gc); err != nil {
		t.Fatal(err)
	}
	// It has begun once it reads, which it must before more than a pipe holds can be written.
	const pipeHolds = 64 << 10
	if _, err := stdin.Write(bytes.Repeat([]byte(" "), 2*pipeHolds)); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		add(fmt.Sprintf("new%d", i))
	}
	if _, err := io.WriteString(stdin, conf(`"cni.dev/valid-attachments": `+string(list))); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := gc.Wait(); err != nil {
		t.Fatal(err)
	}
	bound := make(map[string]bool)
	for _, b := range h.bindings(t) {
		bound[b.Container] = true
	}
	for i := range n {
		if old := fmt.Sprintf("old%d", i); bound[old] != (i%2 == 0) {
			t.Errorf("%s has its binding: %v", old, bound[old])
		} else if i%2 == 0 {
			reach(t, h, tasks[old])
		}
		if name := fmt.Sprintf("new%d", i); !bound[name] {
			t.Errorf("the binding of %s was freed", name)
		} else {
			reach(t, h, tasks[name])
		}
	}
}

func TestGCFindsWhatKilledPluginsLeft(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *host) {
		task := testnet.T(t)
		before := h.things(t)
		h.must(t, "ADD", "c1", task.Path(), conf())
		h.Sh(t, "ip link del "+vethOf("c1")) // chain, neighbour and binding stay
		h.must(t, "GC", "", "", conf(`"cni.dev/valid-attachments": []`))
		h.left(t, before)
	})
}
