package admin_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"taskmeta/internal/admin"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	good := admin.Check{Name: "bindings", Err: func() error { return nil }}
	bad := admin.Check{Name: "docker", Err: func() error { return errors.New("the daemon does not answer") }}
	tests := map[string]struct {
		checks     []admin.Check
		path, host string
		status     int
		body       string
	}{
		"alive whatever the checks say": {checks: []admin.Check{bad}, path: "/healthz", status: 200, body: "ok"},
		"ready when all is well":        {checks: []admin.Check{good}, path: "/readyz", status: 200, body: `"bindings":"ok"`},
		"not ready, and why":            {checks: []admin.Check{good, bad}, path: "/readyz", status: 503, body: `"docker":"the daemon does not answer"`},
		"asked as localhost":            {path: "/healthz", host: "localhost:51680", status: 200},
		"asked by address":              {path: "/healthz", host: "[::1]:51680", status: 200},
		"asked by a name of the web":    {path: "/healthz", host: "evil.example", status: 403, body: "HostNotAllowed"},
		"a page for people":             {path: "/", status: 200, body: "<!DOCTYPE html>"},
		"part of the page":              {path: "/?part=now", status: 200, body: `<div id="now"`},
		"no part of the page":           {path: "/?part=page", status: 404, body: "NotFound"},
		"the page by a name of the web": {path: "/", host: "evil.example", status: 403, body: "HostNotAllowed"},
		"JSON by a name of the web":     {path: "/status.json", host: "evil.example:51680", status: 403, body: "HostNotAllowed"},
		"metrics by a name of the web":  {path: "/metrics", host: "evil.example", status: 403, body: "HostNotAllowed"},
		"no such path":                  {path: "/v2/metadata", status: 404},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newServer(3)
			server.Checks = test.checks
			r := httptest.NewRequest(http.MethodGet, test.path, nil)
			r.Host = test.host
			w := httptest.NewRecorder()
			server.Handler().ServeHTTP(w, r)
			if w.Code != test.status || !strings.Contains(w.Body.String(), test.body) {
				t.Errorf("got %d %s; want %d with %s", w.Code, w.Body, test.status, test.body)
			}
		})
	}
}
