package metadata

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/ecs"
)

// ask sends one request from the web task's address and returns the answer.
func ask(s *Server, method, target string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	r.Host = "169.254.170.2"
	r.RemoteAddr = netip.AddrPortFrom(taskAddr, 4242).String()
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func from(remote string) func(*http.Request) { return func(r *http.Request) { r.RemoteAddr = remote } }

func header(key, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(key, value) }
}

// code is the code of an error's body, or "" if the answer is no error.
func code(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	if w.Code == http.StatusOK {
		return ""
	}
	var body struct{ Code, Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatalf("%v in %q", err, w.Body)
	}
	if body.Message == "" {
		t.Errorf("no message in %s", w.Body)
	}
	return body.Code
}

func TestPaths(t *testing.T) {
	t.Parallel()
	task := webTask()
	task.Containers = append(task.Containers,
		ecs.Container{ID: "aaaaaaaaaaaa1", Name: "twin"},
		ecs.Container{ID: "aaaaaaaaaaaa2", Name: "twin"},
		ecs.Container{ID: "bbbbbbbbbbbb1", Name: "aaaaaaaaaaaa1"},
		ecs.Container{ID: "cccccccccccc1", Name: "a b/c"})
	world := newWorld()
	world.bind(taskAddr, task)
	s := New(world.config())

	whole := string(marshal(t, newTaskReply(task, "us-west-2a")))
	container := func(i int) string { return string(marshal(t, newContainerReply(&task.Containers[i]))) }
	tests := map[string]struct {
		target string
		want   string // a body, or the code of an error
	}{
		"the task":                    {"/v2/metadata", whole},
		"the task, slash":             {"/v2/metadata/", whole},
		"a query is not looked at":    {"/v2/metadata?id=1/../x", whole},
		"a full ID":                   {"/v2/metadata/" + initID, container(2)},
		"a full ID, slash":            {"/v2/metadata/" + initID + "/", container(2)},
		"a name":                      {"/v2/metadata/app", container(1)},
		"a name that clients escape":  {"/v2/metadata/%7Einternal~ecs%7epause", container(0)},
		"a name with a slash in it":   {"/v2/metadata/a%20b%2Fc", container(6)},
		"a prefix of 12":              {"/v2/metadata/bbbbbbbbbbbb", container(5)},
		"an ID before a name":         {"/v2/metadata/aaaaaaaaaaaa1", container(3)},
		"stats of a container":        {"/v2/stats/app", `{"read" : "<now>"}`},
		"stats of a container, slash": {"/v2/stats/" + appID + "/", `{"read" : "<now>"}`},
		"stats of one that runs not":  {"/v2/stats/init", "null"},
		"a prefix of 11":              {"/v2/metadata/bbbbbbbbbbb", "ContainerNotFound"},
		"a prefix of two":             {"/v2/metadata/aaaaaaaaaaaa", "ContainerNotFound"},
		"a name of two":               {"/v2/metadata/twin", "ContainerNotFound"},
		"another's container":         {"/v2/metadata/" + otherID, "ContainerNotFound"},
		"another's container by name": {"/v2/metadata/other", "ContainerNotFound"},
		"another's stats":             {"/v2/stats/" + otherID, "ContainerNotFound"},
		"nobody's container":          {"/v2/metadata/" + strings.Repeat("e", 64), "ContainerNotFound"},
		"dots for an ID":              {"/v2/metadata/..", "ContainerNotFound"},
		"escaped dots for an ID":      {"/v2/metadata/%2e%2e", "ContainerNotFound"},
		"a null byte for an ID":       {"/v2/metadata/%00", "ContainerNotFound"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkPath(t, s, test.target, test.want)
		})
	}
}

func TestPathsOfNothing(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for name, target := range map[string]string{
		"tags of a container":           "/v2/metadataWithTags/" + appID,
		"the root":                      "/",
		"the version alone":             "/v2",
		"the version alone, slash":      "/v2/",
		"another version":               "/v3/metadata",
		"credentials":                   "/v2/credentials/1",
		"other case":                    "/v2/Metadata",
		"a longer word":                 "/v2/metadatas",
		"a doubled slash":               "/v2//metadata",
		"a doubled slash at the start":  "//v2/metadata",
		"a doubled slash at the end":    "/v2/metadata//",
		"an empty ID":                   "/v2/metadata//" + appID,
		"something behind the ID":       "/v2/metadata/app/task",
		"dots in the path":              "/v2/stats/../metadata",
		"escaped dots in the path":      "/v2/stats/%2e%2e/metadata",
		"an escaped slash":              "/v2%2Fmetadata",
		"an escaped letter":             "/v2/%6detadata",
		"a null byte in the path":       "/v2/metadata%00",
		"an absolute URL":               "http://169.254.170.2/v2/metadata",
		"an absolute URL of a stranger": "http://example.com/v2/metadata",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkPath(t, s, target, "NotFound")
		})
	}
}

// checkPath asks for a target, which has to give that body, or that code of an error.
func checkPath(t *testing.T, s *Server, target, want string) {
	t.Helper()
	w := ask(s, http.MethodGet, target)
	switch want {
	case "NotFound", "ContainerNotFound":
		if got := code(t, w); w.Code != http.StatusNotFound || got != want {
			t.Errorf("%d %s, want 404 %s", w.Code, got, want)
		}
	default:
		if w.Code != http.StatusOK || w.Body.String() != want {
			t.Errorf("%d %s, want %s", w.Code, w.Body, want)
		}
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
	if w.Header().Get("Location") != "" {
		t.Error("a redirect")
	}
}

// TestNoTraceOfOthers compares all that a caller sees of another task's container with
// what there is of one that never was.
func TestNoTraceOfOthers(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for _, path := range []string{"/v2/metadata/", "/v2/stats/"} {
		others, nobodys := ask(s, http.MethodGet, path+otherID), ask(s, http.MethodGet, path+strings.Repeat("e", 64))
		if diff := cmp.Diff(nobodys.Header(), others.Header()); diff != "" {
			t.Errorf("%s: headers (- nobody's, + another's):\n%s", path, diff)
		}
		if !bytes.Equal(others.Body.Bytes(), nobodys.Body.Bytes()) {
			t.Errorf("%s: %s, but %s", path, others.Body, nobodys.Body)
		}
	}
}

func TestTaskWithTags(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for _, target := range []string{"/v2/metadataWithTags", "/v2/metadataWithTags/"} {
		golden(t, "task-with-tags.json", ask(s, http.MethodGet, target).Body.Bytes())
	}
}

func TestStatsOfTheTask(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for _, target := range []string{"/v2/stats", "/v2/stats/"} {
		golden(t, "stats.json", ask(s, http.MethodGet, target).Body.Bytes())
	}
}

func TestWhoAsks(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	tests := map[string]struct {
		remote string
		want   string
	}{
		"a task":                 {"127.0.0.7:4242", ""},
		"mapped to IPv6":         {"[::ffff:127.0.0.7]:4242", ""},
		"no task":                {"127.0.0.9:4242", "NoBinding"},
		"a task without a port":  {"127.0.0.7", "NoBinding"},
		"mapped, with a zone":    {"[::ffff:127.0.0.7%eth0]:4242", "NoBinding"},
		"link-local with a zone": {"[fe80::1%ecs-bridge]:4242", "NoBinding"},
		"a unix socket":          {"@", "NoBinding"},
		"nothing":                {"", "NoBinding"},
		"a name":                 {"localhost:4242", "NoBinding"},
		"leading zeros":          {"127.0.0.07:4242", "NoBinding"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ask(s, http.MethodGet, "/v2/metadata", from(test.remote))
			if got := code(t, w); got != test.want {
				t.Errorf("code %q, want %q", got, test.want)
			}
			if closes := w.Header().Get("Connection") == "close"; closes != (test.want != "") {
				t.Errorf("connection closed: %v", closes)
			}
		})
	}
}

func TestForwardedRequests(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for name, change := range map[string]func(*http.Request){
		"X-Forwarded-For":        header("X-Forwarded-For", "127.0.0.8"),
		"X-Forwarded-For, empty": header("X-Forwarded-For", ""),
		"x-forwarded-for, twice": func(r *http.Request) {
			r.Header.Add("x-forwarded-for", "a")
			r.Header.Add("X-FORWARDED-FOR", "b")
		},
		"Forwarded": header("Forwarded", "for=127.0.0.8"),
	} {
		w := ask(s, http.MethodGet, "/v2/metadata", change)
		if got := code(t, w); w.Code != http.StatusForbidden || got != "ForwardedRequest" {
			t.Errorf("%s: %d %s", name, w.Code, got)
		}
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	cfg := newWorld().config()
	cfg.AllowHost = []string{"metadata.internal"}
	s := New(cfg)
	onIPv4 := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 51679}
	onIPv6 := &net.TCPAddr{IP: net.ParseIP("fd00:ec2::23"), Port: 80}
	tests := map[string]struct {
		host  string
		local net.Addr
		want  bool
	}{
		"none":                         {"", onIPv4, true},
		"the endpoint":                 {"169.254.170.2", onIPv4, true},
		"the endpoint with a port":     {"169.254.170.2:80", onIPv4, true},
		"the address listened on":      {"127.0.0.1", onIPv4, true},
		"with its port":                {"127.0.0.1:51679", onIPv4, true},
		"IPv6":                         {"[fd00:ec2::23]", onIPv6, true},
		"IPv6 with a port":             {"[fd00:ec2::23]:80", onIPv6, true},
		"IPv6 mapped":                  {"[::ffff:127.0.0.1]:51679", onIPv4, true},
		"a name that is allowed":       {"metadata.internal", onIPv4, true},
		"in other case, with a port":   {"Metadata.Internal:80", onIPv4, true},
		"a stranger's name":            {"evil.example", onIPv4, false},
		"with a port":                  {"evil.example:80", onIPv4, false},
		"a name under one allowed":     {"x.metadata.internal", onIPv4, false},
		"a name that ends in a dot":    {"metadata.internal.", onIPv4, false},
		"localhost":                    {"localhost", onIPv4, false},
		"another address":              {"10.0.0.1", onIPv4, false},
		"an address that is a name":    {"169.254.170.2.nip.io", onIPv4, false},
		"an address with user":         {"a@169.254.170.2", onIPv4, false},
		"two addresses":                {"169.254.170.2, evil.example", onIPv4, false},
		"brackets around nothing":      {"[]", onIPv4, false},
		"the zero address":             {"0.0.0.0", onIPv4, false},
		"an address on a unix socket":  {"127.0.0.1", &net.UnixAddr{}, false},
		"the endpoint on unix sockets": {"169.254.170.2", &net.UnixAddr{}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ask(s, http.MethodGet, "/v2/metadata", func(r *http.Request) {
				*r = *r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, test.local))
				r.Host = test.host
			})
			want := map[bool]string{true: "", false: "HostNotAllowed"}[test.want]
			if got := code(t, w); got != want {
				t.Errorf("code %q, want %q", got, want)
			}
		})
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for _, target := range []string{"/v2/metadata", "/v2/stats/app", "/nowhere", "*", "169.254.170.2:80"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW"} {
			w := ask(s, http.MethodGet, "/", func(r *http.Request) { r.Method, r.RequestURI = method, target })
			if got := code(t, w); w.Code != http.StatusMethodNotAllowed || got != "MethodNotAllowed" {
				t.Errorf("%s %s: %d %s", method, target, w.Code, got)
			}
			if got := w.Header().Get("Allow"); got != "GET, HEAD" {
				t.Errorf("%s %s: Allow %q", method, target, got)
			}
		}
	}
}

func TestHeadIsGetWithoutABody(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for _, target := range []string{"/v2/metadata", "/v2/metadata/app", "/v2/metadataWithTags", "/v2/stats", "/v2/stats/app", "/nowhere"} {
		get, head := ask(s, http.MethodGet, target), ask(s, http.MethodHead, target)
		if head.Code != get.Code || head.Body.Len() != 0 {
			t.Errorf("%s: %d with %d bytes, GET %d", target, head.Code, head.Body.Len(), get.Code)
		}
		if diff := cmp.Diff(get.Header(), head.Header()); diff != "" {
			t.Errorf("%s (- GET, + HEAD):\n%s", target, diff)
		}
	}
}

func TestFailuresBehind(t *testing.T) {
	t.Parallel()
	secret := errors.New("/run/secret.db of task 42")
	wrap := func(err error) error { return errors.Join(secret, err) }
	tests := map[string]struct {
		bindingErr    error
		taskErr       error
		statsErr      error
		status        int
		code, retryIn string
	}{
		"the address has no binding":    {bindingErr: wrap(ecs.ErrNoBinding), status: 403, code: "NoBinding"},
		"the bindings file is locked":   {bindingErr: wrap(ecs.ErrBusy), status: 503, code: "BindingsUnavailable", retryIn: "1"},
		"the bindings file is damaged":  {bindingErr: wrap(ecs.ErrDamaged), status: 503, code: "BindingsUnavailable", retryIn: "1"},
		"the bindings file is too new":  {bindingErr: wrap(ecs.ErrNewerSchema), status: 503, code: "BindingsUnavailable", retryIn: "1"},
		"the binding ended meanwhile":   {taskErr: wrap(ecs.ErrNoBinding), status: 403, code: "NoBinding"},
		"no container is known yet":     {taskErr: wrap(ecs.ErrTaskNotReady), status: 503, code: "TaskNotReady", retryIn: "1"},
		"Docker does not answer":        {taskErr: wrap(ecs.ErrDockerUnavailable), status: 503, code: "DockerUnavailable", retryIn: "5"},
		"Docker answers with garbage":   {taskErr: secret, status: 503, code: "DockerUnavailable", retryIn: "5"},
		"Docker is gone for statistics": {statsErr: wrap(ecs.ErrDockerUnavailable), status: 503, code: "DockerUnavailable", retryIn: "5"},
		"the container went meanwhile":  {statsErr: wrap(ecs.ErrNoContainer), status: 404, code: "ContainerNotFound"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			world := newWorld()
			world.bindingErr, world.taskErr, world.statsErr = test.bindingErr, test.taskErr, test.statsErr
			targets := []string{"/v2/stats", "/v2/stats/app"}
			if test.statsErr == nil {
				targets = append(targets, "/v2/metadata", "/v2/metadata/app", "/v2/metadataWithTags")
			}
			for _, target := range targets {
				w := ask(New(world.config()), http.MethodGet, target)
				if got := code(t, w); w.Code != test.status || got != test.code {
					t.Errorf("%s: %d %s, want %d %s", target, w.Code, got, test.status, test.code)
				}
				if got := w.Header().Get("Retry-After"); got != test.retryIn {
					t.Errorf("%s: Retry-After %q, want %q", target, got, test.retryIn)
				}
				if strings.Contains(w.Body.String(), "secret") {
					t.Errorf("%s tells the cause: %s", target, w.Body)
				}
			}
		})
	}
}

func TestReplyThatCannotBeRendered(t *testing.T) {
	t.Parallel()
	world := newWorld()
	world.bind(taskAddr, &ecs.Task{CPU: math.NaN()})
	w := ask(New(world.config()), http.MethodGet, "/v2/metadata")
	if got := code(t, w); w.Code != http.StatusInternalServerError || got != "Internal" {
		t.Errorf("%d %s", w.Code, got)
	}
}

func TestAge(t *testing.T) {
	t.Parallel()
	world := newWorld()
	s := New(world.config())
	for age, want := range map[time.Duration]string{0: "", 900 * time.Millisecond: "0", 61500 * time.Millisecond: "61"} {
		world.age = age
		if got := ask(s, http.MethodGet, "/v2/metadata").Header().Get("Age"); got != want {
			t.Errorf("%v: Age %q, want %q", age, got, want)
		}
	}
}

func TestChangedTaskIsRenderedAnew(t *testing.T) {
	t.Parallel()
	world := newWorld()
	s := New(world.config())
	binding := world.bindings[taskAddr]
	for _, family := range []string{"web", "web2"} {
		task := webTask()
		task.Family = family
		world.tasks[binding] = task
		for range 2 {
			want := string(marshal(t, newTaskReply(task, "us-west-2a")))
			if got := ask(s, http.MethodGet, "/v2/metadata").Body.String(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}

// TestEndedBindingLeavesNothing goes through more tasks than live at once: what the
// server keeps of them must go with them.
func TestEndedBindingLeavesNothing(t *testing.T) {
	t.Parallel()
	world := newWorld()
	s := New(world.config())
	for range 100 {
		world.bind(taskAddr, webTask())
		if w := ask(s, http.MethodGet, "/v2/metadata"); w.Code != http.StatusOK {
			t.Fatal(w.Code)
		}
	}
	world.unbind(taskAddr)
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		runtime.GC() // cleanups run after a collection, on a goroutine of the runtime's
		left := s.tenants.Len()
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 100 tenants are left", left)
		}
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := newWorld().config()
		cfg.Rate, cfg.Burst = 10, 3
		s := New(cfg)
		other := from(netip.AddrPortFrom(otherAddr, 1).String())
		for range 3 {
			if w := ask(s, http.MethodGet, "/v2/metadata"); w.Code != http.StatusOK {
				t.Fatalf("%d within the burst", w.Code)
			}
		}
		w := ask(s, http.MethodGet, "/v2/metadata")
		if got := code(t, w); w.Code != http.StatusTooManyRequests || got != "RateLimited" || w.Header().Get("Retry-After") != "1" {
			t.Errorf("%d %s, Retry-After %q", w.Code, got, w.Header().Get("Retry-After"))
		}
		if w := ask(s, http.MethodGet, "/v2/metadata", other); w.Code != http.StatusOK {
			t.Errorf("the other task got %d", w.Code)
		}
		time.Sleep(100 * time.Millisecond) // of the bubble's clock
		if w := ask(s, http.MethodGet, "/v2/metadata"); w.Code != http.StatusOK {
			t.Errorf("%d when a token was due", w.Code)
		}
	})
}

// TestFloodIsHeldBack has a task ask far over its rate on a hundred connections. It must
// be made to wait; another task, and a stranger, must not.
func TestFloodIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := newWorld().config()
		cfg.Rate, cfg.Burst = 10, 10
		s := New(cfg)
		start := time.Now()
		var flood sync.WaitGroup
		for range 100 {
			flood.Go(func() {
				for range 20 {
					ask(s, http.MethodGet, "/v2/metadata")
				}
			})
		}
		synctest.Wait() // the first refusals are out, all else waits
		ask(s, http.MethodGet, "/v2/metadata", from(netip.AddrPortFrom(otherAddr, 1).String()))
		ask(s, http.MethodGet, "/v2/metadata", from(netip.AddrPortFrom(strangerAddr, 1).String()))
		if took := time.Since(start); took != 0 {
			t.Errorf("the others waited %v", took)
		}
		flood.Wait()
		if took := time.Since(start); took < 2*time.Second {
			t.Errorf("2000 requests took the flooding task %v", took)
		}
	})
}

func TestNoRateIsNoLimit(t *testing.T) {
	t.Parallel()
	s := New(newWorld().config())
	for range 1000 {
		if w := ask(s, http.MethodGet, "/v2/metadata"); w.Code != http.StatusOK {
			t.Fatal(w.Code)
		}
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	type seen struct {
		Endpoint string
		Status   int
	}
	var got []seen
	cfg := newWorld().config()
	cfg.Observe = func(endpoint string, status int, _ time.Duration) { got = append(got, seen{endpoint, status}) }
	s := New(cfg)
	for _, target := range []string{"/v2/metadata", "/v2/metadata/app", "/v2/metadataWithTags", "/v2/stats", "/v2/stats/app", "/v2/stats/other", "/x"} {
		ask(s, http.MethodGet, target)
	}
	ask(s, http.MethodGet, "/v2/stats", from("127.0.0.9:1"))
	want := []seen{
		{EndpointTask, 200}, {EndpointContainer, 200}, {EndpointTaskWithTags, 200}, {EndpointTaskStats, 200},
		{EndpointContainerStats, 200}, {EndpointContainerStats, 404}, {EndpointNone, 404}, {EndpointTaskStats, 403},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("observed (- want, + got):\n%s", diff)
	}
}

// TestLog counts lines: each request at debug, refusals as warnings with their cause,
// a flood of them ten and then no more, and the callers' own mistakes none.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		world := newWorld()
		cfg := world.config()
		cfg.Logger = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s := New(cfg)
		ask(s, http.MethodGet, "/nowhere")
		if got := strings.Count(out.String(), "level=WARN"); got != 0 {
			t.Errorf("%d warnings for a wrong path", got)
		}
		for range 100 {
			ask(s, http.MethodGet, "/v2/metadata", func(r *http.Request) { r.Host = strings.Repeat("x", 1<<16) })
		}
		world.taskErr = errors.New("the cause")
		ask(s, http.MethodGet, "/v2/metadata")
		if got := strings.Count(out.String(), "code=HostNotAllowed"); got != 10 {
			t.Errorf("%d lines for 100 wrong hosts, want 10", got)
		}
		if got := out.Len(); got > 100<<10 {
			t.Errorf("%d bytes of log", got)
		}
		if !strings.Contains(out.String(), "code=DockerUnavailable addr=127.0.0.7:4242") || !strings.Contains(out.String(), "the cause") {
			t.Error("another kind of refusal was not logged with its cause")
		}
		if got := strings.Count(out.String(), "level=DEBUG"); got != 102 {
			t.Errorf("%d debug lines for 102 requests", got)
		}
		time.Sleep(time.Second) // of the bubble's clock
		ask(s, http.MethodGet, "/v2/metadata", func(r *http.Request) { r.Host = "x" })
		if !strings.Contains(out.String(), "suppressed=90") {
			t.Error("the next line does not tell how many were left out")
		}
	})
}
