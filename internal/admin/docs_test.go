package admin_test

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

var metricName = regexp.MustCompile(`\b(taskmeta|process|go)_[a-z_]*[a-z]\b`)

// The documents, alerts and panels name metrics that there are, and the documents name all.
func TestDocsNameTheMetricsThatAreExported(t *testing.T) {
	t.Parallel()
	server := newServer(3)
	server.Requests.Observe("metadata", 200, time.Millisecond)
	text := get(t, server, "/metrics").Body.String()
	exported := make(map[string]bool)
	for line := range strings.Lines(text) {
		field := strings.Fields(line)
		if len(field) != 4 || field[1] != "TYPE" {
			continue
		}
		exported[field[2]] = true
		if field[3] == "histogram" {
			exported[field[2]+"_bucket"] = true
		}
	}
	named := make(map[string]bool)
	for _, doc := range []string{"metrics.md", "alerts.yml", "dashboard.json"} {
		for _, name := range metricName.FindAllString(readDoc(t, doc), -1) {
			if !exported[name] {
				t.Errorf("docs/%s names %s, which is not exported", doc, name)
			}
			named[name] = doc == "metrics.md" || named[name]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(exported)) {
		if strings.HasPrefix(name, "taskmeta_") && !strings.HasSuffix(name, "_bucket") && !named[name] {
			t.Errorf("docs/metrics.md does not name %s", name)
		}
	}
}

func TestAlertsAreWhole(t *testing.T) {
	t.Parallel()
	var doc struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr string
				For         time.Duration
				Labels      struct{ Severity string }
				Annotations struct{ Summary, Description string }
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(readDoc(t, "alerts.yml")))
	d.KnownFields(true)
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, group := range doc.Groups {
		for _, r := range group.Rules {
			if r.Alert == "" || seen[r.Alert] || r.Expr == "" || r.Annotations.Summary == "" || r.Annotations.Description == "" {
				t.Errorf("the alert %q lacks something, or is there twice: %+v", r.Alert, r)
			}
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels.Severity) {
				t.Errorf("the alert %q has the severity %q", r.Alert, r.Labels.Severity)
			}
			seen[r.Alert] = true
		}
	}
	if len(seen) == 0 {
		t.Error("no alert")
	}
}

func TestDashboardIsWhole(t *testing.T) {
	t.Parallel()
	type position struct{ X, Y, W, H int }
	var dashboard struct {
		Title, UID string
		Panels     []struct {
			ID          int
			Type, Title string
			GridPos     position
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readDoc(t, "dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.Title == "" || dashboard.UID == "" || len(dashboard.Panels) == 0 {
		t.Errorf("title %q, UID %q, %d panels", dashboard.Title, dashboard.UID, len(dashboard.Panels))
	}
	ids := make(map[int]bool)
	cells := make(map[position]string) // of Grafana's grid, which is 24 wide
	for _, p := range dashboard.Panels {
		if p.Title == "" || p.Type == "" || len(p.Targets) == 0 || ids[p.ID] {
			t.Errorf("panel %d, %q, lacks something, or its ID is another's", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			if !metricName.MatchString(target.Expr) {
				t.Errorf("panel %q asks for no metric: %q", p.Title, target.Expr)
			}
		}
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q does not fit: %+v", p.Title, p.GridPos)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := position{X: p.GridPos.X + x, Y: p.GridPos.Y + y}
				if other, ok := cells[at]; ok {
					t.Fatalf("panels %q and %q overlap", p.Title, other)
				}
				cells[at] = p.Title
			}
		}
	}
}

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
