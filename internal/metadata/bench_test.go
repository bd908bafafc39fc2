package metadata

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"testing"
)

// BenchmarkServeHTTP is the handler's own cost, without a connection.
func BenchmarkServeHTTP(b *testing.B) {
	s := New(newWorld().config())
	for name, path := range map[string]string{"task": "/v2/metadata", "container": "/v2/metadata/" + appID, "stats": "/v2/stats"} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Host = "169.254.170.2"
			c := newConn(netip.AddrPortFrom(taskAddr, 4242).String(), nil)
			r = r.WithContext(context.WithValue(r.Context(), connKey{}, c))
			w := &nullWriter{header: make(http.Header), status: http.StatusOK}
			b.ReportAllocs()
			for b.Loop() {
				s.ServeHTTP(w, r)
			}
			if w.status != http.StatusOK {
				b.Fatalf("status %d", w.status)
			}
		})
	}
}

type nullWriter struct {
	header http.Header
	status int
}

func (w *nullWriter) Header() http.Header         { return w.header }
func (w *nullWriter) WriteHeader(status int)      { w.status = status }
func (w *nullWriter) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkThroughput sets the server beside a bare handler that writes the same bytes,
// over kept-alive loopback connections.
func BenchmarkThroughput(b *testing.B) {
	body, err := newRendering(webTask(), "us-west-2a", nil).metadata()
	if err != nil {
		b.Fatal(err)
	}
	bare := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	})
	servers := map[string]func() *http.Server{
		"bare": func() *http.Server { return &http.Server{Handler: bare} },
		"ours": New(newWorld().config()).HTTPServer,
	}
	for _, conns := range []int{1, 16} {
		for name, server := range servers {
			b.Run(fmt.Sprintf("%s-%d", name, conns), func(b *testing.B) {
				addr := serve(b, server())
				work := make(chan struct{}, conns)
				done := make(chan error, conns)
				for range conns {
					c := dial(b, taskAddr, addr)
					go func() { done <- askRepeatedly(c, work) }()
				}
				for b.Loop() {
					work <- struct{}{}
				}
				close(work)
				for range conns {
					if err := <-done; err != nil {
						b.Error(err)
					}
				}
			})
		}
	}
}

func askRepeatedly(c io.ReadWriter, work <-chan struct{}) error {
	in := bufio.NewReader(c)
	for range work {
		if _, err := io.WriteString(c, "GET /v2/metadata HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
	}
	return nil
}

// BenchmarkRender makes the body of a task of ten containers.
func BenchmarkRender(b *testing.B) {
	task := webTask()
	for len(task.Containers) < 10 {
		task.Containers = append(task.Containers, task.Containers[1])
	}
	for b.Loop() {
		if _, err := newRendering(task, "us-west-2a", nil).metadata(); err != nil {
			b.Fatal(err)
		}
	}
}
