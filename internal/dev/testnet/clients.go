package testnet

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Clients ask for a path without a pause, half of them by connections that are kept and half
// by new ones. Each answer must have a text, or say when to ask again (503).
type Clients struct {
	answers, later atomic.Int64
	enough         func()
	running        sync.WaitGroup
}

// Clients has four clients ask from the namespace until [Clients.Stop], which the test
// defers.
func (n *Namespace) Clients(t *testing.T, url, text string) *Clients {
	c := &Clients{}
	ctx, enough := context.WithCancel(t.Context())
	c.enough = enough
	for i := range 4 {
		c.running.Go(func() {
			transport := &http.Transport{DialContext: n.DialContext, DisableKeepAlives: i%2 == 0}
			defer transport.CloseIdleConnections()
			for ctx.Err() == nil {
				status, body, err := Get(t.Context(), transport, url)
				switch {
				case err == nil && status == http.StatusServiceUnavailable:
					c.later.Add(1)
				case err != nil || status != http.StatusOK || !strings.Contains(body, text):
					t.Errorf("a request failed, kept connections %v: %d %s %v", i%2 == 1, status, body, err)
					return
				default:
					c.answers.Add(1)
				}
			}
		})
	}
	return c
}

// Stop waits for the answers that are under way.
func (c *Clients) Stop() {
	c.enough()
	c.running.Wait()
}

// Await waits until the clients have had so many more answers.
func (c *Clients) Await(t testing.TB, more int64) {
	t.Helper()
	before := c.answers.Load()
	Await(t, "more answers", func() error {
		if n := c.answers.Load() - before; n < more {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// String says what the clients were answered.
func (c *Clients) String() string {
	return fmt.Sprintf("%d answers, and %d times the word to ask again", c.answers.Load(), c.later.Load())
}
