package main

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// drainTime is how long requests that are under way may take once the resolver is told
// to end: longer than a first sample of statistics.
const drainTime = 5 * time.Second

// A drain answers what has been accepted before the end. [http.Server.Shutdown] does not: it
// drops the request that it reads next, on a new connection too, and may not know yet of one
// that is being accepted.
type drain struct {
	accepting sync.WaitGroup // the loops that accept
	open      sync.WaitGroup // connections
}

// watch counts a server's connections, each before the next is accepted.
func (d *drain) watch(server *http.Server) {
	hook := server.ConnState
	server.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			d.open.Add(1)
		case http.StateClosed:
			d.open.Done()
		}
		if hook != nil {
			hook(c, state)
		}
	}
}

// wait returns when the servers, whose listeners are closed, have answered what was asked.
// What has not finished after drainTime is cut off.
func (d *drain) wait(servers ...*http.Server) error {
	d.accepting.Wait()
	for _, server := range servers {
		server.SetKeepAlivesEnabled(false) // ends the connections on which nothing is asked
	}
	done := make(chan struct{})
	go func() {
		d.open.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
	var errs []error
	for _, server := range servers {
		errs = append(errs, server.Close())
	}
	<-done
	return errors.Join(errs...)
}
