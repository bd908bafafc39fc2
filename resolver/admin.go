package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"taskmeta/internal/admin"
	"taskmeta/internal/docker"
)

// newAdmin is what operators are answered from.
func (r *parts) newAdmin() *admin.Server {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return &admin.Server{
		Host:     host,
		Version:  version,
		Instance: r.instance,
		Requests: r.requests,
		Checks: []admin.Check{
			{Name: "bindings", Err: func() error { _, err := r.bindings.Snapshot(); return err }},
			{Name: "docker", Err: func() error { return reachable(r.index.State()) }},
			{Name: "endpoint", Err: r.keeper.Err},
		},
		State:  r.adminState,
		TaskOf: r.index.Known,
	}
}

func (r *parts) adminState() admin.State {
	d, e := r.index.State(), r.keeper.State()
	state := admin.State{
		BindingsLoads: r.bindings.Loads(),
		Bridge:        r.keeper.Subnets(),
		Docker: admin.Docker{
			Connected: d.Connected, Since: d.Since,
			Containers: d.Containers, Streams: d.Streams, Events: d.Events, Resyncs: d.Resyncs,
		},
		Guard: admin.Guard{Repairs: e.Repairs, UnknownPorts: e.UnknownPorts},
	}
	state.Bindings, state.BindingsErr = r.allBindings()
	return state
}

// reachable is why the index of Docker's containers is not current, or nil.
func reachable(s docker.State) error {
	if s.Connected {
		return nil
	}
	if s.Err == nil {
		return errors.New("the Docker daemon has not answered yet")
	}
	return fmt.Errorf("the Docker daemon has not been reachable for %s: %w", time.Since(s.Since).Round(time.Second), s.Err)
}
