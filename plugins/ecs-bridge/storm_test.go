package main

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

func attachment(container string) ecs.Attachment {
	return ecs.Attachment{Network: "ecs-task", Container: container, IfName: "eth0"}
}

// Whenever a plugin is killed, alone or with the IPAM plugin that it has started, DEL
// succeeds and nothing is left.
func TestKilledAtAnyInstant(t *testing.T) {
	if testing.Short() {
		t.Skip("takes many seconds")
	}
	t.Parallel()
	rounds := testnet.Soak(12, 500)
	for _, verb := range []string{"ADD", "DEL"} {
		for _, whom := range []string{"the plugin", "the plugin alone", "the plugin and its children"} {
			t.Run(fmt.Sprintf("%s of %s", verb, whom), func(t *testing.T) {
				t.Parallel()
				h, task := newHost(t), testnet.T(t)
				conf := conf()
				if whom != "the plugin" {
					h.plugin(t, "other-ipam", started())
					conf = otherIPAM()
				}
				h.must(t, "ADD", "first", task.Path(), conf) // makes the bridge
				h.must(t, "DEL", "first", task.Path(), conf)
				before := h.things(t)
				typical := duration(t, h, task, verb, conf)
				for round := range rounds {
					container := fmt.Sprintf("c%d", round)
					if verb == "DEL" {
						h.must(t, "ADD", container, task.Path(), conf)
					}
					cmd := h.call(verb, container, task.Path(), conf).Command(t.Context())
					cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
					kill(t, h, cmd, rand.N(typical*3/2), whom == "the plugin alone")
					h.must(t, "DEL", container, task.Path(), conf)
					h.left(t, before)
				}
				testnet.CheckPages(t, h.db)
			})
		}
	}
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
	if err := h.Start(cmd); err != nil {
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
