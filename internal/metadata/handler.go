package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"taskmeta/internal/ecs"
)

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := connOf(r)
	c.asks.Store(true)
	defer c.asks.Store(false)
	endpoint, id := route(r.RequestURI)
	body, age, err := s.answer(r, c, endpoint, id)
	if c.isProbe() {
		endpoint = EndpointProbe
	}

	header := w.Header()
	header.Set("Content-Type", "application/json")
	if r.ContentLength != 0 {
		// The body is not read, so nothing behind it may be taken for a request.
		header.Set("Connection", "close")
	}
	if age > 0 {
		header.Set("Age", strconv.Itoa(int(age/time.Second)))
	}
	status := http.StatusOK
	if err != nil {
		body, status = s.refuse(header, r, c, err)
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		c.wire.expect(len(body))
		_, _ = w.Write(body) // fails when the client has left
	}

	took := time.Since(start)
	s.observe(endpoint, status, took)
	if s.cfg.Logger.Enabled(r.Context(), slog.LevelDebug) {
		s.cfg.Logger.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("addr", c.client.String()),
			slog.String("method", r.Method), slog.String("path", r.RequestURI),
			slog.Int("status", status), slog.Duration("took", took))
	}
}

// refuse waits for the caller's turn to be refused, and gives the body and status that
// say why.
func (s *Server) refuse(header http.Header, r *http.Request, c *conn, err error) ([]byte, int) {
	f := refusalIn(err)
	_ = s.refusalLimit(c).Wait(r.Context()) // cut short when the client leaves
	switch {
	case f.status == http.StatusForbidden:
		header.Set("Connection", "close") // nothing more is to be had on it
	case f.status == http.StatusMethodNotAllowed:
		header.Set("Allow", "GET, HEAD")
	case f.retryAfter != "":
		header.Set("Retry-After", f.retryAfter)
	}
	if r.Context().Err() == nil { // else the client has left, and that is all
		s.warn(f, c.client, err)
	}
	return f.body(), f.status
}

// answer decides what r is told. A task is attributed before anything of it is looked at,
// and a path is judged last, so that nobody learns what exists but the task itself.
func (s *Server) answer(r *http.Request, c *conn, endpoint, id string) ([]byte, time.Duration, error) {
	if r.Header["X-Forwarded-For"] != nil || r.Header["Forwarded"] != nil {
		return nil, 0, forwardedRequest
	}
	if !s.hostAllowed(r.Host, c) {
		return nil, 0, hostNotAllowed.because(fmt.Errorf("it is %.100q", r.Host))
	}
	if err := s.attribute(r.Context(), c); err != nil {
		return nil, 0, err
	}
	if c.isProbe() {
		return fmt.Appendf(nil, `{"instance":%q}`, s.cfg.Instance), 0, nil
	}
	if !c.tenant.limit.Allow() {
		return nil, 0, rateLimited
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return nil, 0, methodNotAllowed
	}
	if endpoint == EndpointNone {
		return nil, 0, notFound
	}
	task, age, err := s.cfg.TaskOf(r.Context(), c.binding.Load())
	if err != nil {
		return nil, 0, dockerRefusal(err)
	}
	body, err := s.body(r.Context(), c.tenant, task, endpoint, id)
	return body, age, err
}

// attribute finds the task behind a connection. The binding is looked up for each
// request, because a connection that is kept alive may outlive its task.
func (s *Server) attribute(ctx context.Context, c *conn) error {
	b, err := s.cfg.BindingOf(c.client.Addr())
	first := c.binding.Load()
	switch {
	case errors.Is(err, ecs.ErrNoBinding):
		return noBinding
	case err != nil:
		return bindingsUnavailable.because(err)
	case first == b:
		return nil
	case first != nil:
		return noBinding.because(errOtherBinding)
	}
	if s.cfg.Witness != nil {
		switch err := s.cfg.Witness(ctx, b, c.client, c.server); {
		case errors.Is(err, ecs.ErrNotTheTasks):
			return witnessFailed.because(err)
		case err != nil:
			return witnessUnavailable.because(err)
		}
	}
	c.tenant = s.tenants.Get(b)
	c.binding.Store(b)
	return nil
}

var errOtherBinding = errors.New("the connection was opened under an earlier binding of its address")

// hostAllowed guards against DNS rebinding: a page of a stranger's that made its own name
// point here would send that name.
func (s *Server) hostAllowed(host string, c *conn) bool {
	if host == "" {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		var ap netip.AddrPort
		ap, err = netip.ParseAddrPort(host)
		addr = ap.Addr()
	}
	if err == nil {
		addr = addr.Unmap()
		return addr == ecs.EndpointAddr || addr == c.server.Addr()
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	return slices.ContainsFunc(s.cfg.AllowHost, func(allowed string) bool {
		return strings.EqualFold(allowed, name)
	})
}

// body is the answer for one endpoint of the caller's task.
func (s *Server) body(ctx context.Context, t *tenant, task *ecs.Task, endpoint, id string) ([]byte, error) {
	containers := task.Containers
	one := -1
	if id != "" {
		if one = find(containers, id); one < 0 {
			return nil, containerNotFound
		}
		containers = containers[one : one+1]
	}
	switch endpoint {
	case EndpointTask:
		return s.rendering(t, task).metadata()
	case EndpointTaskWithTags:
		return s.rendering(t, task).withTags()
	case EndpointContainer:
		return s.rendering(t, task).container(one)
	}

	ids := make([]string, len(containers))
	for i := range containers {
		ids[i] = containers[i].ID
	}
	stats, err := s.cfg.Stats(ctx, ids)
	switch {
	case err != nil:
		return nil, dockerRefusal(err)
	case endpoint == EndpointContainerStats:
		return orNull(stats[ids[0]]), nil
	default:
		return statsBody(containers, stats), nil
	}
}

// rendering is the tenant's, made anew when its task is another than before.
func (s *Server) rendering(t *tenant, task *ecs.Task) *rendering {
	r := t.rendered.Load()
	if r == nil || r.task != task {
		r = newRendering(task, s.cfg.AvailabilityZone, s.cfg.InstanceTags)
		t.rendered.Store(r)
	}
	return r
}

func (s *Server) observe(endpoint string, status int, took time.Duration) {
	if s.cfg.Observe != nil {
		s.cfg.Observe(endpoint, status, took)
	}
}
