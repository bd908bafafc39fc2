//go:build !man

// Ecs-resolver answers the containers of a task that ask http://169.254.170.2/v2/metadata
// who they are: it finds the task by the address that asks, and the rest by Docker.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
