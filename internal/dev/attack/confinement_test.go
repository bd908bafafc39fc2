package attack

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
)

// TestAnothersContainerDoesNotExist compares what a task is told of containers of another
// task with what it is told of such as never were.
func TestAnothersContainerDoesNotExist(t *testing.T) {
	t.Parallel()
	w := newWorld(t, strict)
	c, err := w.attacker.DialContext(t.Context(), "tcp", endpoint4.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	name, err := docker.CLI("inspect", "--format", "{{.Name}}", w.victim.container)
	if err != nil {
		t.Fatal(err)
	}
	name = strings.TrimPrefix(name, "/")
	for _, path := range []string{"/v2/metadata/", "/v2/stats/"} {
		for what, ids := range map[string][2]string{
			"by its ID":            {w.victim.container, strings.Repeat("0123456789abcdef", 4)},
			"by the start of it":   {w.victim.container[:12], "0123456789ab"},
			"by its name":          {name, strings.Repeat("x", len(name))},
			"by its ID, in prefix": {w.victim.container[:40], strings.Repeat("f", 40)},
		} {
			t.Run(path+" "+what, func(t *testing.T) {
				var said [2]string
				var took [2][]time.Duration
				for range testnet.Soak(100, 2_000) {
					for i, id := range ids {
						start := time.Now()
						said[i] = notFound(t, c, in, path+id)
						took[i] = append(took[i], time.Since(start))
					}
					if said[0] != said[1] {
						t.Fatalf("of another's it is told\n%s\nof none\n%s", said[0], said[1])
					}
				}
				// The fastest of many, asked in turns: what else the machine does is in neither.
				another, none := slices.Min(took[0]), slices.Min(took[1])
				t.Logf("the fastest: another's %s, none %s", another, none)
				if another > 2*none || none > 2*another {
					t.Errorf("another's takes %s, none %s: the difference tells them apart", another, none)
				}
			})
		}
	}
}

// notFound asks on a kept connection and returns the whole answer, which must be a 404,
// but for its date.
func notFound(t *testing.T, c net.Conn, in *bufio.Reader, path string) string {
	t.Helper()
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("%s: %s; want 404", path, resp.Status)
	}
	resp.Header.Del("Date")
	text, err := httputil.DumpResponse(resp, true)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
