package admin_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"taskmeta/internal/admin"
	"taskmeta/internal/ecs"
)

func TestPageShowsEachAddressAndTask(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		tasks         int
		present, gone int
		says          string
	}{
		"no task":     {tasks: 0, says: "No task is attached"},
		"three tasks": {tasks: 3, present: 2, gone: 1, says: "1 address is held by nothing that runs"},
		"a full pool": {tasks: poolSize, present: 919, gone: 102, says: "102 addresses are held by nothing that runs"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			page := parse(t, get(t, newServer(test.tasks), "/").Body)
			cells := make(map[string]int)
			for _, cell := range page.cells() {
				cells[attr(cell, "class")]++
			}
			for class, want := range map[string]int{
				"cell present": test.present, "cell gone": test.gone,
				"cell free": poolSize - test.tasks, "cell reserved": 3,
			} {
				if cells[class] != want {
					t.Errorf("%d are %q, want %d", cells[class], class, want)
				}
			}
			tasks := make(map[string]bool)
			for _, task := range page.elements("article") {
				tasks["#"+attr(task, "id")] = true
			}
			if len(tasks) != test.tasks {
				t.Errorf("%d tasks are listed, want %d", len(tasks), test.tasks)
			}
			for _, cell := range page.cells() {
				if to := attr(cell, "href"); to != "" && !tasks[to] {
					t.Errorf("%s leads to %s, where no task is", attr(cell, "title"), to)
				}
			}
			if !strings.Contains(page.text(), test.says) {
				t.Errorf("the page does not say %q", test.says)
			}
		})
	}
}

func TestMapOfAPool(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		bridge string
		bound  []string
		want   []string
	}{
		"a small one": {
			bridge: "10.0.0.1/29", bound: []string{"10.0.0.3/29"},
			want: []string{
				"10.0.0.0: reserved", "10.0.0.1: the gateway", "10.0.0.2: free", "10.0.0.3: c0, gone",
				"10.0.0.4: free", "10.0.0.5: free", "10.0.0.6: free", "10.0.0.7: reserved",
			},
		},
		"of one too large to draw, the addresses held": {
			bridge: "fd00::1/64", bound: []string{"fd00::9/64", "fd00::2/64"},
			want: []string{"fd00::2: c1, gone", "fd00::9: c0, gone"},
		},
		"of one too large to draw, nothing held": {bridge: "fd00::1/64"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newServer(0)
			state := admin.State{Bridge: []netip.Prefix{netip.MustParsePrefix(test.bridge)}, Docker: admin.Docker{Connected: true}}
			for i, addr := range test.bound {
				state.Bindings = append(state.Bindings, &ecs.Binding{
					Attachment: ecs.Attachment{Container: "c" + string(rune('0'+i))},
					Addrs:      []netip.Prefix{netip.MustParsePrefix(addr)},
				})
			}
			server.State = func() admin.State { return state }
			var got []string
			for _, cell := range parse(t, get(t, server, "/").Body).cells() {
				got = append(got, attr(cell, "title"))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPageSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*admin.Server, *admin.State)
		says   string
	}{
		"nothing": {says: "All is well."},
		"a check fails": {
			change: func(s *admin.Server, _ *admin.State) {
				s.Checks = append(s.Checks, failing("plugins", "ecs-ipam is not in /opt/cni/bin"))
			},
			says: "plugins ecs-ipam is not in /opt/cni/bin",
		},
		"a stranger on the bridge": {
			change: func(_ *admin.Server, s *admin.State) { s.Guard.UnknownPorts = []string{"veth66"} },
			says:   "Unknown port veth66 on the bridge.",
		},
		"a container that is not held": {
			change: func(s *admin.Server, _ *admin.State) {
				known := s.TaskOf
				s.TaskOf = func(b *ecs.Binding) *ecs.Task {
					task := known(b)
					if task == nil {
						return nil
					}
					same := *task
					same.Containers = slices.Clone(same.Containers)
					same.Containers[0].CanChangeHostNetwork = true
					return &same
				}
			},
			says: "can change the host's network",
		},
		"Docker is away": {
			change: func(_ *admin.Server, s *admin.State) { s.Docker.Connected = false },
			says:   "away since 2026-11-24 04:00:12 UTC",
		},
		"the bindings cannot be read": {
			change: func(_ *admin.Server, s *admin.State) { s.Bindings, s.BindingsErr = nil, errors.New("damaged") },
			says:   "The bindings file cannot be read",
		},
		"nothing was ever attached": {
			change: func(_ *admin.Server, s *admin.State) { s.Bindings, s.Bridge = nil, nil },
			says:   "No subnet is known yet",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newServer(2)
			state := server.State()
			if test.change != nil {
				test.change(server, &state)
			}
			server.State = func() admin.State { return state }
			if text := parse(t, get(t, server, "/").Body).text(); !strings.Contains(text, test.says) {
				t.Errorf("the page does not say %q:\n%s", test.says, text)
			}
		})
	}
}

func TestPageWithoutScriptLoadsItselfAnew(t *testing.T) {
	t.Parallel()
	root, err := html.ParseWithOptions(get(t, newServer(0), "/").Body, html.ParseOptionEnableScripting(false))
	if err != nil {
		t.Fatal(err)
	}
	for _, meta := range (document{root}).elements("meta") {
		if attr(meta, "http-equiv") == "refresh" && attr(meta, "content") == "10" && meta.Parent.Data == "noscript" {
			return
		}
	}
	t.Error("no refresh every 10 seconds in a noscript element")
}

func TestNamesAreTextAndNotMarkup(t *testing.T) {
	t.Parallel()
	const hostile = `"'><script>alert(1)</script><img src=x onerror=alert(1)>`
	server := newServer(1)
	server.Checks = []admin.Check{failing(hostile, hostile)}
	server.TaskOf = func(*ecs.Binding) *ecs.Task {
		return &ecs.Task{
			ARN: hostile, Family: hostile, Revision: hostile, Known: hostile,
			Containers: []ecs.Container{{ID: hostile, Name: hostile, Image: hostile, Known: hostile, Health: &ecs.Health{Status: hostile}}},
		}
	}
	page := parse(t, get(t, server, "/").Body)
	if n := len(page.elements("script")); n != 1 {
		t.Errorf("%d scripts, want the page's own", n)
	}
	if n := len(page.elements("img")); n != 0 {
		t.Errorf("%d images", n)
	}
	if n := strings.Count(page.text(), hostile); n != 10 {
		t.Errorf("the text stands %d times on the page, want 10", n)
	}
}

func TestPageRunsItsOwnScriptAloneAndLoadsNothing(t *testing.T) {
	t.Parallel()
	w := get(t, newServer(3), "/")
	page := parse(t, w.Body)
	directives := strings.Split(w.Header().Get("Content-Security-Policy"), "; ")
	for element, directive := range map[string]string{"script": "script-src", "style": "style-src"} {
		found := page.elements(element)
		if len(found) != 1 {
			t.Fatalf("%d elements %s, want 1", len(found), element)
		}
		sum := sha256.Sum256([]byte(found[0].FirstChild.Data))
		want := directive + " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if !slices.Contains(directives, want) {
			t.Errorf("the policy %q lacks %q", directives, want)
		}
	}
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} {
		if !slices.Contains(directives, want) {
			t.Errorf("the policy %q lacks %q", directives, want)
		}
	}
	for n := range page.Descendants() {
		for _, a := range n.Attr {
			outside := (a.Key == "src" || a.Key == "href") && !strings.HasPrefix(a.Val, "#") &&
				!slices.Contains([]string{"/metrics", "/status.json", "data:,"}, a.Val)
			if outside || a.Key == "style" || strings.HasPrefix(a.Key, "on") {
				t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
			}
		}
	}
}

func TestInventoryChangesWithTheTasksAlone(t *testing.T) {
	t.Parallel()
	server := newServer(3)
	inventory := func() string {
		return attr(parse(t, get(t, server, "/?part=now").Body).elements("div")[0], "data-inventory")
	}
	first := inventory()
	server.Requests.Observe("metadata", 200, 0)
	if got := inventory(); got != first || got == "" {
		t.Errorf("after a request %q, before %q", got, first)
	}
	server.TaskOf = func(*ecs.Binding) *ecs.Task { return nil }
	if got := inventory(); got == first {
		t.Errorf("after the tasks had gone %q as before", got)
	}
}

// A document is a parsed page.
type document struct{ *html.Node }

func parse(t *testing.T, r io.Reader) document {
	t.Helper()
	root, err := html.Parse(r)
	if err != nil {
		t.Fatal(err)
	}
	return document{root}
}

func (d document) elements(name string) (found []*html.Node) {
	for n := range d.Descendants() {
		if n.Type == html.ElementNode && n.Data == name {
			found = append(found, n)
		}
	}
	return found
}

// cells are the addresses of the maps.
func (d document) cells() (found []*html.Node) {
	for n := range d.Descendants() {
		if strings.HasPrefix(attr(n, "class"), "cell ") && attr(n, "title") != "" {
			found = append(found, n)
		}
	}
	return found
}

// text is what is to be read, with single blanks.
func (d document) text() string {
	var text strings.Builder
	for n := range d.Descendants() {
		if n.Type == html.TextNode && n.Parent.Data != "style" && n.Parent.Data != "script" {
			text.WriteString(n.Data + " ")
		}
	}
	return strings.Join(strings.Fields(text.String()), " ")
}

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}
