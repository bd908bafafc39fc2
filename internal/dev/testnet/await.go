package testnet

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// waitTime bounds every wait.
const waitTime = time.Minute

// Until calls fn until it returns nil, the context ends, or a minute has passed.
func Until(ctx context.Context, what string, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(context.Cause(ctx), err))
		case <-tick.C:
		}
	}
}

// Await is [Until] for a test, which fails if it ends with an error.
func Await(t testing.TB, what string, fn func() error) {
	t.Helper()
	if err := Until(context.Background(), what, fn); err != nil {
		t.Fatal(err)
	}
}
