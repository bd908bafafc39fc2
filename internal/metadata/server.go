// Package metadata answers the ECS agent's task metadata API, version 2, over HTTP. Who
// asks is told by the address that the connection comes from, and by nothing else.
package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"taskmeta/internal/ecs"
	"taskmeta/internal/weakmap"
)

// DefaultMaxConns leaves room for 256 clients in a task that open a connection for each
// request, since a closed one counts until the server has noticed. An idle connection
// costs 24 KiB, and one with the largest header 100 KiB.
const DefaultMaxConns = 512

// DefaultMaxAllConns is 16 connections for each task of a full subnet, and 400 MB if all of
// them are idle.
const DefaultMaxAllConns = 16384

const (
	readTimeout  = 5 * time.Second  // for a whole request, its header included
	writeTimeout = 15 * time.Second // a first sample of statistics takes up to 2.5 s of it
	idleTimeout  = 60 * time.Second

	maxHeader = 64 << 10
	// headerSlop is what net/http reads beyond MaxHeaderBytes before it answers 431.
	headerSlop = 4 << 10
)

// Config is what a [Server] needs from the rest of the resolver. Functions are called at
// once from many requests.
type Config struct {
	// BindingOf finds who holds an address now, or returns [ecs.ErrNoBinding]; any other
	// error says that the bindings cannot be read. A binding is the same pointer as long
	// as it lasts, and another once its address has been given again.
	BindingOf func(netip.Addr) (*ecs.Binding, error)
	// TaskOf finds the task of a binding, and how old that knowledge is if it could not
	// be kept current. An unchanged task is the same pointer.
	TaskOf func(context.Context, *ecs.Binding) (*ecs.Task, time.Duration, error)
	// Stats gives Docker's statistics of the containers by ID. Those that do not run, and
	// those of which none come within seconds, are missing or nil.
	Stats func(ctx context.Context, containerIDs []string) (map[string]json.RawMessage, error)
	// Witness confirms, once for each connection, that the client's end of it belongs to
	// the binding's task: nil confirms all. It returns [ecs.ErrNotTheTasks] if it does not;
	// any other error says that it could not find out.
	Witness func(ctx context.Context, b *ecs.Binding, client, server netip.AddrPort) error
	// Observe is told of every answer, for metrics; it may be nil. The endpoint is one of
	// the constants below. A connection over the cap counts as a 429 of [EndpointConnection].
	Observe func(endpoint string, status int, took time.Duration)
	Logger  *slog.Logger

	// Rate is how many requests a task may make per second, Burst how many at once. No
	// Rate is no limit.
	Rate  float64
	Burst int
	// MaxConns is how many connections one source address may have open; one more is
	// closed unanswered. 0 stands for [DefaultMaxConns].
	MaxConns int
	// MaxAllConns is how many connections may be open together. With so many, one is closed
	// of the source that has most, or the new one if that is its own. 0 stands for
	// [DefaultMaxAllConns].
	MaxAllConns int
	// AllowHost are names that the Host header may hold besides the addresses listened on.
	AllowHost []string

	// Instance is what the questions of `ecs-resolver status` are answered with, by which they
	// know this server.
	Instance string

	AvailabilityZone string
	InstanceTags     map[string]string
}

// What an answer was about: the values that Observe sees.
const (
	EndpointTask           = "metadata"
	EndpointContainer      = "metadata/id"
	EndpointTaskWithTags   = "metadataWithTags"
	EndpointTaskStats      = "stats"
	EndpointContainerStats = "stats/id"
	EndpointNone           = "none"       // no such path
	EndpointConnection     = "connection" // no request was read
	EndpointProbe          = "probe"      // a question of `ecs-resolver status`
)

// Server serves the API. Its handler is [Server.ServeHTTP]; [Server.HTTPServer] puts the
// limits around it that a public listener needs.
type Server struct {
	cfg     Config
	conns   conns
	tenants *weakmap.Map[ecs.Binding, tenant]
	// strangers limits refusals on connections that no task is known of.
	strangers *rate.Limiter
	warnings  map[*refusal]*warnings
}

// New makes a server. It holds nothing that needs to be closed.
func New(cfg Config) *Server {
	if cfg.MaxConns == 0 {
		cfg.MaxConns = DefaultMaxConns
	}
	if cfg.MaxAllConns == 0 {
		cfg.MaxAllConns = DefaultMaxAllConns
	}
	limit := rate.Inf
	if cfg.Rate > 0 {
		limit = rate.Limit(cfg.Rate)
	}
	s := &Server{
		cfg:       cfg,
		conns:     conns{limit: cfg.MaxConns, total: cfg.MaxAllConns, of: make(map[netip.Addr]map[net.Conn]*conn)},
		tenants:   weakmap.New[ecs.Binding](func() *tenant { return newTenant(limit, cfg.Burst) }),
		strangers: newRefusalLimiter(),
		warnings:  make(map[*refusal]*warnings),
	}
	for _, f := range refusals {
		s.warnings[f] = &warnings{limit: rate.NewLimiter(rate.Every(time.Second), 10)}
	}
	return s
}

// HTTPServer is a server with time-outs, a header of 64 KiB at most and the cap on
// connections. It may serve any number of listeners, best those of [Listener].
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true, // OPTIONS * is a method like others
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader - headerSlop,
		ConnContext:                  s.takeIn,
		ConnState:                    s.trackConn,
		ErrorLog:                     slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn),
	}
}

// takeIn makes a new connection known, or closes it unread if its source has too many:
// whoever has so many gets nothing better.
func (s *Server) takeIn(ctx context.Context, raw net.Conn) context.Context {
	c := newConn(raw.RemoteAddr().String(), raw.LocalAddr())
	c.wire, _ = raw.(*wire)
	ok, ended := s.conns.add(raw, c)
	if !ok {
		s.turnAway(raw, errTooManyConns)
	}
	if ended != nil {
		s.turnAway(ended, errMostConns)
	}
	return context.WithValue(ctx, connKey{}, c)
}

// turnAway closes a connection for want of room.
func (s *Server) turnAway(raw net.Conn, why error) {
	_ = raw.Close()
	s.observe(EndpointConnection, http.StatusTooManyRequests, 0)
	s.warn(rateLimited, peer(raw.RemoteAddr().String()), why)
}

func (s *Server) trackConn(raw net.Conn, state http.ConnState) {
	if state == http.StateClosed {
		s.conns.remove(raw)
	}
}

var (
	errTooManyConns = errors.New("too many open connections from one address")
	errMostConns    = errors.New("all connections together are too many, and this address has the most")
)

// A ConnState is how many connections are open, and how many may be.
type ConnState struct{ Open, Most int }

// Conns returns the state of the connections for status pages and metrics.
func (s *Server) Conns() ConnState {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	return ConnState{s.conns.held, s.conns.total}
}

// CloseEnded ends the connections whose binding has ended: it is not its address's any
// more, or gone says so. What is queued for them is dropped.
func (s *Server) CloseEnded(gone func(*ecs.Binding) bool) {
	for addr, open := range s.conns.all() {
		now, err := s.cfg.BindingOf(addr) // nil if no attachment holds it
		known := err == nil || errors.Is(err, ecs.ErrNoBinding)
		for raw, c := range open {
			// Nothing has been sent yet on a connection without a binding.
			if b := c.binding.Load(); b != nil && (known && b != now || gone(b)) {
				reset(raw)
			}
		}
	}
}
