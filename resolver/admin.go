package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"taskmeta/internal/admin"
	"taskmeta/internal/bindingdb"
	"taskmeta/internal/docker"
	"taskmeta/internal/endpoint"
)

// newAdmin is what operators are answered from.
func newAdmin(bindings *bindingdb.Reader, index *docker.Index, end *endpoint.Keeper, requests *admin.Requests) *admin.Server {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return &admin.Server{
		Host:     host,
		Version:  version,
		Requests: requests,
		Checks: []admin.Check{
			{Name: "bindings", Err: func() error { _, err := bindings.Snapshot(); return err }},
			{Name: "docker", Err: func() error { return reachable(index.State()) }},
			{Name: "endpoint", Err: end.Err},
		},
		State:  func() admin.State { return adminState(bindings, index, end) },
		TaskOf: index.Known,
	}
}

func adminState(bindings *bindingdb.Reader, index *docker.Index, end *endpoint.Keeper) admin.State {
	state := admin.State{BindingsLoads: bindings.Loads()}
	if snapshot, err := bindings.Snapshot(); err != nil {
		state.BindingsErr = err
	} else {
		state.Bindings = snapshot.All()
	}
	d := index.State()
	state.Docker = admin.Docker{
		Connected: d.Connected, Since: d.Since,
		Containers: d.Containers, Streams: d.Streams, Events: d.Events, Resyncs: d.Resyncs,
	}
	e := end.State()
	state.Guard, state.Bridge = admin.Guard{Repairs: e.Repairs, UnknownPorts: e.UnknownPorts}, e.Subnets
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
