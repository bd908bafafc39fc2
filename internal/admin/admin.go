// Package admin is what an operator of the host asks: is the resolver alive, and is it
// ready. It listens on loopback or a unix socket, never towards tasks.
package admin

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// A Check is one of the parts that must work for the resolver to be ready.
type Check struct {
	Name string
	Err  func() error // nil when the part works; else what is wrong and what to do
}

// A Server answers /healthz and /readyz.
type Server struct {
	Checks []Check
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
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	for _, c := range s.Checks {
		found[c.Name] = "ok"
		if err := c.Err(); err != nil {
			status, found[c.Name] = http.StatusServiceUnavailable, err.Error()
		}
	}
	reply(w, status, found)
}

func reply(w http.ResponseWriter, status int, body map[string]string) {
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
