// Package admin is what an operator of the host asks: is the resolver alive, is it ready,
// what does it know, and how is it doing. It listens on loopback or a unix socket, never
// towards tasks.
package admin

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"time"

	"taskmeta/internal/ecs"
)

// A Check is one of the parts that must work for the resolver to be ready.
type Check struct {
	Name string
	Err  func() error // nil when the part works; else what is wrong and what to do
}

// A Server answers /healthz, /readyz, /metrics, /status.json and, at /, a page for people.
type Server struct {
	Host     string // the page's title
	Version  string
	Instance string // a random ID, by which `ecs-resolver status` recognizes this process
	Checks   []Check
	Requests *Requests
	// State and TaskOf are asked at each scrape, and every two seconds by each page that is
	// looked at. TaskOf tells what is known of a binding's task without asking anybody;
	// nil for nothing.
	State  func() State
	TaskOf func(*ecs.Binding) *ecs.Task
}

// HTTPServer returns a server for the handler with time-outs set.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

// Handler returns the paths. A request whose Host is a name other than localhost is
// refused, so that no web page can read them by pointing its own name here.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.metrics())
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, s.status())
	})
	mux.HandleFunc("GET /{$}", s.page)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		header.Set("X-Content-Type-Options", "nosniff")
		if !localHost(r.Host) {
			reply(w, http.StatusForbidden, map[string]string{
				"code":    "HostNotAllowed",
				"message": "the Host header must be localhost or an address",
			})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// ready answers 200 when every check passes and 503 otherwise, and says what each found.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	status, found := http.StatusOK, make(map[string]string, len(s.Checks))
	for _, f := range s.findings() {
		found[f.Name] = "ok"
		if !f.OK {
			status, found[f.Name] = http.StatusServiceUnavailable, f.Problem
		}
	}
	reply(w, status, found)
}

// findings asks all checks.
func (s *Server) findings() []Finding {
	list := make([]Finding, len(s.Checks))
	for i, c := range s.Checks {
		list[i] = Finding{Name: c.Name, OK: true}
		if err := c.Err(); err != nil {
			list[i].OK, list[i].Problem = false, err.Error()
		}
	}
	return list
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone is not our error
}

// localHost reports whether a Host header can come from a client that meant this host:
// a literal address, localhost, or none.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "" || host == "localhost" {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}
