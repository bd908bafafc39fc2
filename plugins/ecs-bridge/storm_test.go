package main

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

func attachment(container string) ecs.Attachment {
	return ecs.Attachment{Network: "ecs-task", Container: container, IfName: "eth0"}
}

// A storm kills plugins at random instants.
type storm struct {
	verb   string
	whom   string
	pinned bool // the bridge stands in a namespace of its own
	moved  bool // which is pinned after the ADD, so that the port stands in the other place
}

// Whenever a plugin is killed, alone or with the IPAM plugin that it has started, DEL
// succeeds and nothing is left, wherever the port stood.
func TestKilledAtAnyInstant(t *testing.T) {
	if testing.Short() {
		t.Skip("takes many seconds")
	}
	t.Parallel()
	for _, s := range []storm{
		{verb: "ADD", whom: "the plugin"},
		{verb: "ADD", whom: "the plugin alone"},
		{verb: "ADD", whom: "the plugin and its children"},
		{verb: "ADD", whom: "the plugin", pinned: true},
		{verb: "DEL", whom: "the plugin"},
		{verb: "DEL", whom: "the plugin alone"},
		{verb: "DEL", whom: "the plugin and its children"},
		{verb: "DEL", whom: "the plugin", pinned: true},
		{verb: "DEL", whom: "the plugin", moved: true},
	} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			t.Parallel()
			s.run(t)
		})
	}
}

func (s storm) run(t *testing.T) {
	h, task := newHost(t), testnet.T(t)
	if s.pinned {
		h = newPinnedHost(t)
	}
	added := conf()
	if s.whom != "the plugin" {
		h.plugin(t, "other-ipam", started())
		added = otherIPAM()
	}
	conf := added
	if s.moved {
		h.runtime = h.Namespace
		h.Namespace = pinAt(t, netns.PinPath(h.db))
		added = strings.TrimSuffix(added, "}") + `, "netns": "host"}`
	}
	h.must(t, "ADD", "first", task.Path(), added) // makes the bridge
	h.must(t, "DEL", "first", task.Path(), conf)
	before := h.things(t)
	typical := duration(t, h, task, s.verb, conf)
	for round := range testnet.Soak(12, 500) {
		container := fmt.Sprintf("c%d", round)
		if s.verb == "DEL" {
			h.must(t, "ADD", container, task.Path(), added)
		}
		cmd := h.call(s.verb, container, task.Path(), conf).Command(t.Context())
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		kill(t, h, cmd, rand.N(typical*3/2), s.whom == "the plugin alone")
		h.must(t, "DEL", container, task.Path(), conf)
		h.left(t, before)
	}
	testnet.CheckPages(t, h.db)
}

// duration is about how long a verb takes here.
func duration(t *testing.T, h *host, task *testnet.Namespace, verb, conf string) time.Duration {
	t.Helper()
	started := time.Now()
	h.must(t, "ADD", "timed", task.Path(), conf)
	added := time.Now()
	h.must(t, "DEL", "timed", task.Path(), conf)
	if verb == "ADD" {
		return added.Sub(started)
	}
	return time.Since(added)
}

// kill starts a command and kills it after a while, unless it has ended before.
func kill(t *testing.T, h *host, cmd *exec.Cmd, after time.Duration, alone bool) {
	t.Helper()
	if err := h.from().Start(cmd); err != nil {
		t.Fatal(err)
	}
	target := -cmd.Process.Pid
	if alone {
		target = cmd.Process.Pid
	}
	// The process is not waited for before the timer is stopped, so its ID is its own.
	timer := time.AfterFunc(after, func() { syscall.Kill(target, syscall.SIGKILL) })
	defer timer.Stop()
	_ = cmd.Wait() // it was killed, or ended by itself: both are good
}
