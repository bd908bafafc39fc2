package docs_test

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A row of the tree in docs/design.md: a package, what it is, and what it imports of ours.
var row = regexp.MustCompile("(?m)^\\| [a-z]* ?\\| `([^`]+)` \\| [^|]* \\|([^|]*)\\|$")

// The tree in docs/design.md has every package of the product, each with its imports, and
// stands in such an order that all of them lead down.
func TestArrowsLeadDown(t *testing.T) {
	t.Parallel()
	var order []string
	imports := make(map[string][]string)
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/design.md"), -1) {
		of := []string{}
		for _, name := range strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' }) {
			of = append(of, "internal/"+name)
		}
		slices.Sort(of)
		order, imports[m[1]] = append(order, m[1]), of
	}
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./internal/...", "./plugins/...", "./resolver")
	cmd.Dir = root
	listed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(listed)) {
		names := strings.Fields(strings.ReplaceAll(line, "taskmeta/", ""))
		name := names[0]
		if strings.HasPrefix(name, "internal/dev/") || name == "internal/packaging" {
			continue
		}
		found++
		of := slices.DeleteFunc(names[1:], func(s string) bool { return !strings.HasPrefix(s, "internal/") })
		slices.Sort(of)
		if has, ok := imports[name]; !ok || !slices.Equal(of, has) {
			t.Errorf("%s imports %v: docs/design.md has %v", name, of, has)
		}
		for _, other := range of {
			if slices.Index(order, other) < slices.Index(order, name) {
				t.Errorf("%s imports %s, which stands above it in docs/design.md", name, other)
			}
		}
	}
	if found < 20 {
		t.Fatalf("only %d packages are found", found)
	}
}
