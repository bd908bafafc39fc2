package packaging

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What a program links it loads at each start, and its privileges are that code's too. So a
// plugin has no HTTP and no client of Docker, and the service, which runs as root, nothing
// that only writes its manual pages.
func TestWhatTheProgramsLink(t *testing.T) {
	t.Parallel()
	for program, never := range map[string][]string{
		"plugins/ecs-ipam":   {"net/http", "github.com/docker/docker", "github.com/spf13"},
		"plugins/ecs-bridge": {"net/http", "github.com/docker/docker", "github.com/spf13"},
		"resolver":           {"github.com/spf13/cobra/doc", "github.com/cpuguy83/go-md2man", "github.com/russross/blackfriday", "go.yaml.in", "gopkg.in"},
	} {
		out, err := exec.Command("go", "list", "-deps", "taskmeta/"+program).Output()
		if err != nil {
			t.Fatalf("go list -deps: %v", err)
		}
		linked := strings.Fields(string(out))
		if !slices.Contains(linked, "taskmeta/internal/ecs") {
			t.Fatalf("%s links no package of its own: %s", program, out)
		}
		for _, pkg := range linked {
			for _, root := range never {
				if pkg == root || strings.HasPrefix(pkg, root+"/") {
					t.Errorf("%s links %s", program, pkg)
				}
			}
		}
	}
}
