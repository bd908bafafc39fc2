package main

import (
	"context"
	"errors"
	"time"
)

// undo is the ways back of what an ADD has done so far.
type undo []func(context.Context) error

func (u *undo) push(back func(context.Context) error) { *u = append(*u, back) }

// onError goes the ways back, last first, when *err is set, and adds what they say. The
// caller's context may be over, so they have five seconds of their own: the longest of
// them, an IPAM plugin's DEL, may wait for others at work on its file.
func (u *undo) onError(ctx context.Context, err *error) {
	if *err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for i := len(*u) - 1; i >= 0; i-- {
		*err = errors.Join(*err, (*u)[i](ctx))
	}
}
