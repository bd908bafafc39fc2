package main

import (
	"context"
	"net/netip"

	"taskmeta/internal/ecs"
	"taskmeta/internal/witness"
)

// newWitness returns the function that confirms that the client's end of a connection is
// in the network namespace of the binding's task, or nil if that is not asked for.
func newWitness(required string) func(context.Context, *ecs.Binding, netip.AddrPort, netip.AddrPort) error {
	if required == witnessOff {
		return nil
	}
	w := witness.New()
	return func(_ context.Context, b *ecs.Binding, client, server netip.AddrPort) error {
		if server.Addr().IsLoopback() {
			// Somebody's DNAT rule led the connection here; the task knows nothing of it.
			server = netip.AddrPortFrom(ecs.EndpointAddr, ecs.EndpointPort)
		}
		return w.Seen(b, client, server)
	}
}
