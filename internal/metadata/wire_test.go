package metadata

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"taskmeta/internal/ecs"
)

const get = "GET /v2/metadata HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n"

// exchange sends bytes as they are, with nothing to come behind them, and returns the
// statuses of the answers up to the end of the connection.
func exchange(t *testing.T, addr, request string) (statuses []int) {
	t.Helper()
	c := dial(t, taskAddr, addr)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(in, nil)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return statuses
		}
		if err != nil {
			t.Fatal(err)
		}
		body := readAll(t, resp.Body)
		if resp.StatusCode != http.StatusOK && strings.Contains(body, taskARN) {
			t.Errorf("%s tells of the task: %s", resp.Status, body)
		}
		statuses = append(statuses, resp.StatusCode)
	}
}

// usual is a request without the blank line at its end, and line one that begins otherwise.
const usual = "GET /v2/metadata HTTP/1.1\r\nHost: 169.254.170.2\r\n"

func line(request string) string { return request + "\r\nHost: 169.254.170.2\r\n\r\n" }

// shapes are requests that only a raw connection can send, with the statuses of the answers.
var shapes = map[string]struct {
	request string
	want    []int
}{
	"plain":                                 {get, []int{200}},
	"HTTP/1.0 without Host":                 {"GET /v2/metadata HTTP/1.0\r\n\r\n", []int{200}},
	"HTTP/1.1 without Host":                 {"GET /v2/metadata HTTP/1.1\r\n\r\n", []int{400}},
	"HTTP/1.1 with an empty Host":           {"GET /v2/metadata HTTP/1.1\r\nHost:\r\n\r\n", []int{200}},
	"two Hosts":                             {usual + "Host: evil.example\r\n\r\n", []int{400}},
	"a stranger's Host":                     {"GET /v2/metadata HTTP/1.1\r\nHost: evil.example\r\n\r\n" + get, []int{403}},
	"pipelined":                             {get + get + get, []int{200, 200, 200}},
	"pipelined behind a refusal":            {usual + "Forwarded: for=1\r\n\r\n" + get, []int{403}},
	"pipelined behind a wrong path":         {line("GET /x HTTP/1.1") + get, []int{404, 200}},
	"a request hidden in a body":            {usual + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(get)) + get, []int{200}},
	"a request behind a body":               {usual + "Content-Length: 1\r\n\r\nx" + get, []int{200}},
	"Content-Length and chunked":            {usual + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get, []int{200}},
	"chunked, then Content-Length":          {usual + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + get, []int{200}},
	"two Content-Lengths":                   {usual + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + get, []int{400}},
	"a signed Content-Length":               {usual + "Content-Length: +5\r\n\r\nhello", []int{400}},
	"a negative Content-Length":             {usual + "Content-Length: -1\r\n\r\n" + get, []int{400}},
	"an unknown coding":                     {usual + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", []int{501}},
	"chunked twice":                         {usual + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{501}},
	"a coding behind a tab":                 {usual + "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + get, []int{200}},
	"a coding with a vertical tab":          {usual + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n" + get, []int{400}},
	"chunked and identity":                  {usual + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + get, []int{501}},
	"a coding in HTTP/1.0":                  {"GET /v2/metadata HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get, []int{200}},
	"a list of Content-Lengths":             {usual + "Content-Length: 5, 5\r\n\r\nhello" + get, []int{400}},
	"a Content-Length in hexadecimal":       {usual + "Content-Length: 0x5\r\n\r\nhello" + get, []int{400}},
	"a Content-Length beyond all numbers":   {usual + "Content-Length: 99999999999999999999\r\n\r\n" + get, []int{400}},
	"a chunk of a bad size":                 {usual + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + get, []int{200}},
	"a chunk with an extension":             {usual + "Transfer-Encoding: chunked\r\n\r\n0;a=\"\r\n\r\n" + get, []int{200}},
	"a carriage return alone":               {usual + "X: a\rForwarded: for=1\r\n\r\n" + get, []int{400}},
	"a forwarded one without a value":       {usual + "X-Forwarded-For:\r\n\r\n" + get, []int{403}},
	"a space before the colon":              {usual + "X-Forwarded-For : 1\r\n\r\n", []int{400}},
	"a folded header":                       {usual + "X-Long: a\r\n X-Forwarded-For: 1\r\n\r\n", []int{200}},
	"a header folded at the start":          {"GET /v2/metadata HTTP/1.1\r\n Host: 169.254.170.2\r\n\r\n", []int{400}},
	"lines that end in LF alone":            {strings.ReplaceAll(get, "\r", ""), []int{200}},
	"a forwarded one in odd case, LF alone": {"GET /v2/metadata HTTP/1.1\nHost: 169.254.170.2\nx-fOrWaRdEd-fOr: 1\n\n", []int{403}},
	"a header without a colon":              {usual + "X-Forwarded-For\r\n\r\n", []int{400}},
	"a null byte in a header":               {usual + "X: a\x00b\r\n\r\n", []int{400}},
	"a null byte in the path":               {line("GET /v2/metadata\x00 HTTP/1.1"), []int{400}},
	"an escaped null byte":                  {line("GET /v2/metadata%00 HTTP/1.1"), []int{404}},
	"a bad escape":                          {line("GET /v2/metadata/%zz HTTP/1.1"), []int{400}},
	"escaped dots":                          {line("GET /v2/stats/%2e%2e/metadata HTTP/1.1"), []int{404}},
	"dots":                                  {line("GET /v2/stats/../metadata HTTP/1.1"), []int{404}},
	"an escaped slash":                      {line("GET /v2%2fmetadata HTTP/1.1"), []int{404}},
	"a backslash":                           {line("GET /v2/stats\\..\\metadata HTTP/1.1"), []int{404}},
	"overlong UTF-8":                        {line("GET /v2/stats/%c0%ae%c0%ae/metadata HTTP/1.1"), []int{404}},
	"doubled slashes":                       {line("GET //v2//metadata HTTP/1.1"), []int{404}},
	"a fragment":                            {line("GET /v2/metadata#x HTTP/1.1"), []int{404}},
	"no slash":                              {line("GET v2/metadata HTTP/1.1"), []int{400}},
	"the absolute form":                     {line("GET http://169.254.170.2/v2/metadata HTTP/1.1"), []int{404}},
	"the absolute form, a stranger's name":  {line("GET http://evil.example/v2/metadata HTTP/1.1"), []int{403}},
	"OPTIONS *":                             {line("OPTIONS * HTTP/1.1"), []int{405}},
	"CONNECT":                               {line("CONNECT 169.254.170.2:80 HTTP/1.1"), []int{405}},
	"TRACE":                                 {line("TRACE /v2/metadata HTTP/1.1"), []int{405}},
	"a method in other case":                {line("get /v2/metadata HTTP/1.1"), []int{405}},
	"an empty method":                       {line(" /v2/metadata HTTP/1.1"), []int{400}},
	"two spaces":                            {line("GET  /v2/metadata HTTP/1.1"), []int{400}},
	"HTTP/0.9":                              {"GET /v2/metadata\r\n", []int{400}},
	"HTTP/3.0":                              {line("GET /v2/metadata HTTP/3.0"), []int{505}},
	"HTTP/2 by its preface":                 {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", []int{405}},
	"HTTP/2 by an upgrade":                  {usual + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", []int{200}},
	"TLS":                                   {"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", []int{400}},
	"an expectation that nobody knows":      {usual + "Expect: miracles\r\n\r\n", []int{417}},
	"a header of 63 KiB":                    {usual + "X: " + strings.Repeat("x", 63<<10) + "\r\n\r\n", []int{200}},
	"a header of 65 KiB":                    {usual + "X: " + strings.Repeat("x", 65<<10) + "\r\n\r\n", []int{431}},
	"a path of 65 KiB":                      {line("GET /" + strings.Repeat("x", 65<<10) + " HTTP/1.1"), []int{431}},
	"20,000 headers":                        {usual + strings.Repeat("a:b\r\n", 20_000) + "\r\n", []int{431}},
	"nothing":                               {"", nil},
	"half a request":                        {"GET /v2/meta", []int{400}},
}

// TestShapesOfRequests sends what only a raw connection can. Wherever two readers could
// differ on where a request ends, no second answer may follow.
func TestShapesOfRequests(t *testing.T) {
	t.Parallel()
	addr := serve(t, New(newWorld().config()).HTTPServer())
	for name, test := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := exchange(t, addr, test.request)
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("statuses %v, want %v", got, test.want)
			}
		})
	}
}

// roundTrip asks on a connection that is kept alive.
func roundTrip(t *testing.T, c net.Conn, in *bufio.Reader) *http.Response {
	t.Helper()
	if _, err := io.WriteString(c, get); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp.Body)
	return resp
}

func TestKeptConnectionOutlivesItsBinding(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*world){
		"the binding ended":         func(w *world) { w.unbind(taskAddr) },
		"the address was given on":  func(w *world) { w.bind(taskAddr, webTask()) },
		"it ended and a next began": func(w *world) { w.unbind(taskAddr); w.bind(taskAddr, webTask()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			world := newWorld()
			addr := serve(t, New(world.config()).HTTPServer())
			c := dial(t, taskAddr, addr)
			in := bufio.NewReader(c)
			for range 3 {
				if resp := roundTrip(t, c, in); resp.StatusCode != http.StatusOK {
					t.Fatal(resp.Status)
				}
			}
			change(world)
			if resp := roundTrip(t, c, in); resp.StatusCode != http.StatusForbidden || !resp.Close {
				t.Errorf("%s, closed %v", resp.Status, resp.Close)
			}
			if _, err := in.ReadByte(); err != io.EOF {
				t.Errorf("the connection goes on: %v", err)
			}
		})
	}
}

func TestWitness(t *testing.T) {
	t.Parallel()
	world := newWorld()
	cfg := world.config()
	type question struct {
		binding        *ecs.Binding
		client, server netip.AddrPort
	}
	asked := make(chan question, 10)
	cfg.Witness = func(_ context.Context, b *ecs.Binding, client, server netip.AddrPort) error {
		asked <- question{b, client, server}
		if client.Addr() == otherAddr {
			return fmt.Errorf("%w: no socket", ecs.ErrNotTheTasks)
		}
		return nil
	}
	addr := serve(t, New(cfg).HTTPServer())

	c := dial(t, taskAddr, addr)
	in := bufio.NewReader(c)
	for range 3 {
		if resp := roundTrip(t, c, in); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	want := question{world.bindings[taskAddr], c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()}
	if got := <-asked; got != want {
		t.Errorf("the witness was asked %+v, want %+v", got, want)
	}
	if len(asked) > 0 {
		t.Error("the witness was asked again on one connection")
	}

	forged := dial(t, otherAddr, addr)
	if resp := roundTrip(t, forged, bufio.NewReader(forged)); resp.StatusCode != http.StatusForbidden || !resp.Close {
		t.Errorf("without a socket: %s, closed %v", resp.Status, resp.Close)
	}
}

// That the witness could not find out is a failure of ours, whatever it is: the task may ask
// again. Only what it has found is a refusal.
func TestWitnessThatCannotFindOut(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]error{
		"no descriptor is free":          &os.SyscallError{Syscall: "socket", Err: syscall.EMFILE},
		"none of the host's is free":     syscall.ENFILE,
		"no memory":                      syscall.ENOMEM,
		"no buffers":                     syscall.ENOBUFS,
		"not permitted":                  syscall.EPERM,
		"the namespace cannot be opened": &fs.PathError{Op: "open", Path: "/proc/1/ns/net", Err: syscall.EACCES},
		"too late":                       context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := newWorld().config()
			var failing atomic.Bool
			failing.Store(true)
			cfg.Witness = func(context.Context, *ecs.Binding, netip.AddrPort, netip.AddrPort) error {
				if failing.Load() {
					return fmt.Errorf("asking: %w", failure)
				}
				return nil
			}
			addr := serve(t, New(cfg).HTTPServer())
			c := dial(t, taskAddr, addr)
			in := bufio.NewReader(c)
			resp := roundTrip(t, c, in)
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || resp.Close {
				t.Errorf("%s, Retry-After %q, closed %v; want 503 on a connection that stays", resp.Status, resp.Header.Get("Retry-After"), resp.Close)
			}
			failing.Store(false)
			if resp := roundTrip(t, c, in); resp.StatusCode != http.StatusOK {
				t.Errorf("once it can find out: %s", resp.Status)
			}
		})
	}
}

func TestConnectionsOfAnEndedBinding(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*world) (gone func(*ecs.Binding) bool){
		"it is freed": func(w *world) func(*ecs.Binding) bool {
			w.unbind(taskAddr)
			return func(*ecs.Binding) bool { return false }
		},
		"its address is another's": func(w *world) func(*ecs.Binding) bool {
			w.bind(taskAddr, webTask())
			return func(*ecs.Binding) bool { return false }
		},
		"its interface is gone": func(w *world) func(*ecs.Binding) bool {
			ended := w.bindings[taskAddr]
			return func(b *ecs.Binding) bool { return b == ended }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			world := newWorld()
			s := New(world.config())
			addr := serve(t, s.HTTPServer())
			mine, others, unasked := dial(t, taskAddr, addr), dial(t, otherAddr, addr), dial(t, taskAddr, addr)
			for _, c := range []net.Conn{mine, others} {
				roundTrip(t, c, bufio.NewReader(c))
			}
			s.CloseEnded(end(world))
			if _, err := mine.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read gave %v, want a reset", err)
			}
			if resp := roundTrip(t, others, bufio.NewReader(others)); resp.StatusCode != http.StatusOK {
				t.Errorf("another task's connection: %s", resp.Status)
			}
			want := http.StatusOK
			if name == "it is freed" {
				want = http.StatusForbidden
			}
			if resp := roundTrip(t, unasked, bufio.NewReader(unasked)); resp.StatusCode != want {
				t.Errorf("a connection on which nothing was asked: %s, want %d", resp.Status, want)
			}
		})
	}
}

// TestConnectionsAreBounded opens many times what one address may, and leaves them idle.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	cfg := newWorld().config()
	cfg.MaxConns = 50
	refused := make(chan string, 2000)
	cfg.Observe = func(endpoint string, status int, _ time.Duration) {
		if status == http.StatusTooManyRequests {
			refused <- endpoint
		}
	}
	s := New(cfg)
	server := s.HTTPServer()
	server.ReadTimeout = 5 * time.Minute // or the first are ended before a slow machine has dialled the last
	addr := serve(t, server)
	var conns []*net.TCPConn
	for range 2000 {
		conns = append(conns, dial(t, taskAddr, addr))
	}
	for range 2000 - 50 {
		if got := <-refused; got != EndpointConnection {
			t.Fatal(got)
		}
	}
	if got := s.conns.open(taskAddr); got != 50 {
		t.Errorf("%d connections are open, want 50", got)
	}
	if resp := roundTrip(t, conns[0], bufio.NewReader(conns[0])); resp.StatusCode != http.StatusOK {
		t.Errorf("one of the first 50: %s", resp.Status)
	}
	other := dial(t, otherAddr, addr)
	if resp := roundTrip(t, other, bufio.NewReader(other)); resp.StatusCode != http.StatusOK {
		t.Errorf("another task: %s", resp.Status)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	awaitClosed(t, s)
}

// With as many connections as there may be together, another task always gets in, at the
// cost of those who have most: of what they do not use, the oldest first.
func TestConnectionsTogetherAreBounded(t *testing.T) {
	t.Parallel()
	world := newWorld()
	greedy := []netip.Addr{netip.MustParseAddr("127.0.0.21"), netip.MustParseAddr("127.0.0.22"), netip.MustParseAddr("127.0.0.23")}
	for _, addr := range greedy {
		world.bind(addr, webTask())
	}
	cfg := world.config()
	cfg.MaxConns, cfg.MaxAllConns = 20, 30
	asking, answer := make(chan struct{}, 1), make(chan struct{})
	cfg.Stats = func(context.Context, []string) (map[string]json.RawMessage, error) {
		asking <- struct{}{}
		<-answer
		return nil, nil
	}
	s := New(cfg)
	server := s.HTTPServer()
	server.ReadTimeout = 5 * time.Minute
	addr := serve(t, server)
	answers := func(c net.Conn) {
		t.Helper()
		if resp := roundTrip(t, c, bufio.NewReader(c)); resp.StatusCode != http.StatusOK {
			t.Errorf("%v gets %s", c.LocalAddr(), resp.Status)
		}
	}
	first := dial(t, greedy[0], addr) // the oldest, which asks
	if _, err := io.WriteString(first, "GET /v2/stats HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-asking
	for range 20 {
		for _, from := range greedy {
			dial(t, from, addr)
		}
	}
	settled := func(want map[netip.Addr]int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			got := make(map[netip.Addr]int)
			for a := range want {
				got[a] = s.conns.open(a)
			}
			if maps.Equal(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("connections: %v, want %v", got, want)
			}
		}
	}
	settled(map[netip.Addr]int{greedy[0]: 10, greedy[1]: 10, greedy[2]: 10})
	for n := range 5 { // and then others get in, as many as they would
		for _, from := range []netip.Addr{taskAddr, otherAddr} {
			answers(dial(t, from, addr))
			if got := s.conns.open(from); got != n+1 {
				t.Errorf("%v has %d connections, want %d", from, got, n+1)
			}
		}
	}
	if all := s.Conns(); all != (ConnState{30, 30}) {
		t.Errorf("%+v", all)
	}
	close(answer)
	resp, err := http.ReadResponse(bufio.NewReader(first), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the one that asked, the oldest: %v, %v", resp, err)
	}
}

// open is how many connections addr has.
func (cs *conns) open(addr netip.Addr) int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.of[addr])
}

// awaitClosed waits until the server has ended all connections of the web task.
func awaitClosed(t *testing.T, s *Server) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); s.conns.open(taskAddr) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are still open", s.conns.open(taskAddr))
		}
	}
}

// TestClientThatDoesNotRead asks for more than the sockets hold and takes none of it.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	world := newWorld()
	world.stats[appID] = bytes.Repeat([]byte("1"), 16<<20)
	s := New(world.config())
	server := s.HTTPServer()
	server.WriteTimeout /= 15
	c := dial(t, taskAddr, serve(t, server))
	if _, err := io.WriteString(c, strings.Replace(get, "metadata", "stats", 1)); err != nil {
		t.Fatal(err)
	}
	// Until the answer has begun. On a machine that is busy it may be cut off before.
	if _, err := c.Read(make([]byte, 1)); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	awaitClosed(t, s)
}

// TestSlowRequests checks that each way to be slow has an end. The server's own time-outs
// are shortened, not replaced: one that is not set stays so.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	server := New(newWorld().config()).HTTPServer()
	server.ReadTimeout /= 25
	server.IdleTimeout /= 300
	addr := serve(t, server)
	body := "GET /v2/metadata HTTP/1.1\r\nHost: 169.254.170.2\r\nContent-Length: 100000\r\n\r\n"
	for name, sent := range map[string]string{
		"not a byte":             "",
		"half a request line":    "GET /v2/met",
		"half a header":          "GET /v2/metadata HTTP/1.1\r\nHost: 169",
		"a body that never came": body,
		"nothing more":           get,
		"half a second request":  get + "GET",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, taskAddr, addr)
			if _, err := io.WriteString(c, sent); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection did not end: %v", err)
			}
		})
	}
	t.Run("a header that is dribbled", func(t *testing.T) {
		t.Parallel()
		c := dial(t, taskAddr, addr)
		var err error
		for start := time.Now(); err == nil && time.Since(start) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
			_, err = io.WriteString(c, "X")
		}
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing ended with %v, want a closed connection", err)
		}
	})
}
