package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// passed is an ecs-resolver with an open socket, as systemd passes it: as descriptor 3,
// which LISTEN_FDS counts for the process LISTEN_PID.
func passed(t *testing.T, ns *testnet.Namespace, socket *os.File, env []string, args ...string) *testnet.Resolver {
	return &testnet.Resolver{
		Host: ns, Program: "sh", LogFile: filepath.Join(t.TempDir(), "resolver.log"),
		Args:  append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, filepath.Join(bin, "ecs-resolver")}, args...),
		Env:   append(env, "LISTEN_FDS=1", "LISTEN_FDNAMES=tasks"),
		Files: []*os.File{socket},
	}
}

// endpointSocket listens where tasks ask, whether or not the address stands anywhere yet.
func endpointSocket(t *testing.T, ns *testnet.Namespace) *os.File {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) }), err)
	}}
	var file *os.File
	err := ns.Do(func() error {
		l, err := config.Listen(context.Background(), "tcp", "169.254.170.2:80")
		if err != nil {
			return err
		}
		defer l.Close()
		file, err = l.(*net.TCPListener).File()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// With the socket held by somebody else, a restart refuses nobody: what comes meanwhile waits.
func TestRestartsLoseNoRequest(t *testing.T) {
	const restarts = 10
	h := newHost(t)
	if _, err := h.command("netns"); err != nil { // as the unit does
		t.Fatal(err)
	}
	socket := endpointSocket(t, h.place(t))
	args := []string{"--db", h.db(), "--docker-host", h.docker.Host, "--rate", "0"}
	resolver := passed(t, h.ns, socket, nil, args...)
	resolver.Serve(t, "/healthz")
	web := h.task(t, "web")
	web.attach(t)
	ns, err := testnet.Open(web.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()

	clients := ns.Clients(t, url("/v2/metadata"), web.arn)
	defer clients.Stop()
	for range restarts {
		clients.Await(t, 100)
		if err := errors.Join(resolver.Stop(), resolver.Start()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s, over %d restarts", clients, restarts)
}

// What systemd is told, and that a signal ends the resolver with requests done.
func TestSystemdIsTold(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the resolver")
	}
	ns := testnet.T(t)
	dir, err := os.MkdirTemp("", "notify") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	l, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	resolver := passed(t, ns, socket, []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=200000"},
		"--bridge", "none", "--witness", "off", "--db", filepath.Join(dir, "bindings.db"), "--docker-host", "unix://"+filepath.Join(dir, "docker.sock"))
	resolver.Serve(t, "/healthz")
	next := func() string {
		t.Helper()
		if err := told.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 256)
		n, err := told.Read(text)
		if err != nil {
			t.Fatalf("nothing is told: %v", err)
		}
		return string(text[:n])
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := next(); got != want {
			t.Errorf("systemd is told %q; want %q", got, want)
		}
	}
	if status, body, err := ns.Ask(t.Context(), "http://"+l.Addr().String()+"/v2/metadata"); err != nil || status != http.StatusForbidden {
		t.Errorf("the passed socket answers %d %s (%v); want 403", status, body, err)
	}
	if err := resolver.Stop(); err != nil {
		t.Fatal(err)
	}
	for {
		if got := next(); got == "STOPPING=1" {
			break
		} else if got != "WATCHDOG=1" {
			t.Errorf("at the end systemd is told %q; want STOPPING=1", got)
		}
	}
}

// Every signal that ends the resolver lets it answer what is being asked. A terminal that is
// closed sends SIGHUP; under nohup the resolver goes on.
func TestSignalsLetRequestsFinish(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the resolver")
	}
	for name, test := range map[string]struct {
		signal  syscall.Signal
		program []string
		ends    bool
	}{
		"SIGTERM":            {syscall.SIGTERM, nil, true},
		"SIGINT":             {syscall.SIGINT, nil, true},
		"SIGHUP":             {syscall.SIGHUP, nil, true},
		"SIGHUP under nohup": {syscall.SIGHUP, []string{"nohup"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, dir := testnet.T(t), t.TempDir()
			const at = "127.0.0.1:51679"
			words := append(test.program, filepath.Join(bin, "ecs-resolver"), "--bridge", "none", "--witness", "off", "--listen", at,
				"--db", filepath.Join(dir, "bindings.db"), "--docker-host", "unix://"+filepath.Join(dir, "docker.sock"))
			resolver := &testnet.Resolver{Host: ns, Program: words[0], Args: words[1:], LogFile: filepath.Join(dir, "resolver.log")}
			resolver.Serve(t, "/healthz")
			c, err := ns.DialContext(t.Context(), "tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("GET /v2/metadata HTTP/1.1\r\n")); err != nil {
				t.Fatal(err)
			}
			// Connections are accepted in turn: the one before is the resolver's by now.
			if _, _, err := ns.Ask(t.Context(), "http://"+at+"/v2/metadata"); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(resolver.Pid(), test.signal); err != nil {
				t.Fatal(err)
			}
			if test.ends {
				resolver.AwaitLog(t, `"msg":"ending"`)
			}
			if _, err := c.Write([]byte("Host: " + at + "\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || answer.StatusCode != http.StatusForbidden {
				t.Errorf("the request under way is answered with %v, %v; want 403", answer, err)
			}
		})
	}
}

// Tasks that hold all connections that they can get, with few descriptors for the resolver,
// keep no other task out.
func TestConnectionsWithoutEndKeepNobodyOut(t *testing.T) {
	h := newHost(t)
	h.resolver = &testnet.Resolver{
		Host: h.ns, Program: "sh", LogFile: filepath.Join(h.dir, "resolver.log"),
		Args: []string{"-c", `ulimit -n 128; exec "$0" "$@"`, filepath.Join(bin, "ecs-resolver"), "--db", h.db(), "--docker-host", h.docker.Host, "--rate", "0"},
	}
	h.resolver.Serve(t, "/readyz")
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	request := []byte("GET /v2/metadata HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n")
	var greedy sync.WaitGroup
	var mu sync.Mutex
	for n := range 3 {
		k := h.task(t, fmt.Sprint("greedy", n))
		k.attach(t)
		ns, err := testnet.Open(k.netns)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		greedy.Go(func() {
			for range 512 {
				c, err := ns.DialContext(t.Context(), "tcp", "169.254.170.2:80")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = c.Write(request) // and then it stands, for a minute, unless it is closed
				mu.Lock()
				held = append(held, c)
				mu.Unlock()
			}
		})
	}
	quiet := h.task(t, "quiet")
	quiet.attach(t)
	ns, err := testnet.Open(quiet.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	ask := func() {
		t.Helper()
		transport := &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}
		if status, body, err := testnet.Get(t.Context(), transport, url("/v2/metadata")); err != nil || status != http.StatusOK || !strings.Contains(body, quiet.arn) {
			t.Errorf("beside tasks that hold all connections: %d %s %v", status, body, err)
		}
	}
	for range 20 {
		ask() // while they come
	}
	greedy.Wait()
	for range 50 {
		ask()
	}
	h.task(t, "late") // Docker's events are followed too
}

// A task that asks all the time over many connections is held back by itself alone.
func TestAFloodIsItsOwnTasks(t *testing.T) {
	h := newHost(t)
	h.serve(t)
	loud, quiet := h.task(t, "loud"), h.task(t, "quiet")
	spaces := make(map[*task]*testnet.Namespace)
	for _, k := range []*task{loud, quiet} {
		k.attach(t)
		ns, err := testnet.Open(k.netns)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		spaces[k] = ns
	}
	var refused atomic.Int64
	ctx, enough := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer enough()
	for range 32 {
		flood.Go(func() {
			transport := &http.Transport{DialContext: spaces[loud].DialContext}
			defer transport.CloseIdleConnections()
			for ctx.Err() == nil {
				if status, _, err := testnet.Get(t.Context(), transport, url("/v2/metadata")); err == nil && status == http.StatusTooManyRequests {
					refused.Add(1)
				}
			}
		})
	}
	testnet.Await(t, "the flood to be over its rate", func() error {
		if n := refused.Load(); n < 100 {
			return fmt.Errorf("%d refusals", n)
		}
		return nil
	})
	transport := &http.Transport{DialContext: spaces[quiet].DialContext}
	defer transport.CloseIdleConnections()
	var slowest time.Duration
	for range 50 {
		began := time.Now()
		if status, body, err := testnet.Get(t.Context(), transport, url("/v2/metadata")); err != nil || status != http.StatusOK || !strings.Contains(body, quiet.arn) {
			t.Fatalf("beside a flood: %d %s %v", status, body, err)
		}
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("the slowest of 50 answers took %v beside %d refusals", slowest, refused.Load())
}
