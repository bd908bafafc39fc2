package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// Tasks come and go in a subnet so small that every address has a new owner soon, and ask
// all the while. Each is told of itself at once after its ADD, and never of another.
func TestNoAnswerIsAnothers(t *testing.T) {
	h := newHost(t)
	h.serve(t, "--rate", "0")
	const tasks, clients = 4, 3
	pairs := testnet.Soak(40, 2000) / tasks
	asks := testnet.Soak(5, 20)

	var answers atomic.Int64
	var all sync.WaitGroup
	for i := range tasks {
		k := h.task(t, fmt.Sprintf("storm%d", i))
		k.subnet = "169.254.172.0/29" // five addresses to give
		ns, err := testnet.Open(k.netns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		all.Go(func() {
			for range pairs {
				if _, err := k.cni("add"); err != nil {
					t.Errorf("ADD of %s: %v", k.name, err)
					return
				}
				var group sync.WaitGroup
				for range clients {
					group.Go(func() { answers.Add(askAsTask(t, k, ns, asks)) })
				}
				group.Wait()
				if _, err := k.cni("del"); err != nil {
					t.Errorf("DEL of %s: %v", k.name, err)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d answers beside %d pairs of ADD and DEL, each the asker's own", answers.Load(), pairs*tasks)
}

// askAsTask asks times over from a task that is attached, over one connection and over
// new ones in turn, and returns how many answers were right.
func askAsTask(t *testing.T, k *task, ns *testnet.Namespace, times int) (right int64) {
	kept := &http.Transport{DialContext: ns.DialContext}
	defer kept.CloseIdleConnections()
	fresh := &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}
	for i := range times {
		for _, transport := range []*http.Transport{kept, fresh} {
			status, body, err := testnet.Get(t.Context(), transport, url("/v2/metadata"))
			var got struct{ TaskARN string }
			switch {
			case err != nil:
				t.Errorf("%s, question %d: %v", k.name, i, err)
			case status != http.StatusOK:
				t.Errorf("%s, question %d: %d %s", k.name, i, status, body)
			case json.Unmarshal([]byte(body), &got) != nil || got.TaskARN != k.arn:
				t.Errorf("%s is told of %q", k.name, got.TaskARN)
			default:
				right++
			}
		}
	}
	return right
}
