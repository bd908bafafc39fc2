package attack

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/attacks.md from the table of attacks")

// aims are in the order of the document, with what stops those of each.
var aims = []struct{ aim, stops string }{
	{beTaken, "The port's chain lets nothing out that is not from the task's own MAC and IP address, untagged and whole. " +
		"The port's flags pass no frame from another MAC address, and the neighbour entries send the answers to the task that has the address. " +
		"The witness refuses what has no socket in that task."},
	{hearOthers, "The chain lets out no claim to another's address. The bridge does not learn from the port, its entries are sticky, and the host's neighbour entries are permanent."},
	{reachNeighbour, "The chain lets out nothing that is for another task. Isolated ports do not hear each other, are not flooded, and the host's table does not forward between them."},
	{reachBeyond, "The chain lets out requests to the endpoint and the questions that these take, and nothing else; the host's table takes in nothing else from the bridge."},
	{noTask, "The host has the bridge's IPv4 addresses, and its routes to the tasks, for packets of the bridge alone; its table drops what else comes for the bridge's addresses, or goes to tasks. The sockets are bound to the bridge."},
}

// page is docs/attacks.md.
func page() string {
	var b strings.Builder
	b.WriteString(`# The attacks

Written by the tests of ` + "`internal/dev/attack`" + `, which try each of these against the product, and against a plain bridge with a
resolver that believes source addresses, where it has to succeed: an attack that fails everywhere tests nothing. The
attacker has all capabilities in its own network namespace and sends frames made by hand. To see them on your own host:

` + "```" + `
go test ./internal/dev/attack -v        # as root; also a part of make test
` + "```" + `

**X** is an attack that succeeds. "After a flush" is guard ` + "`strict`" + ` between ` + "`nft flush ruleset`" + ` and the repair by the
resolver, which takes it milliseconds where it runs; afterwards it is ` + "`strict`" + ` again, which is tested, too. During a storm of
ADD and DEL all is as without.
`)
	var notes []string
	note := func(why string) string {
		if why == "" {
			return "–"
		}
		i := slices.Index(notes, why)
		if i < 0 {
			i = len(notes)
			notes = append(notes, why)
		}
		return fmt.Sprintf("**X** (%d)", i+1)
	}
	for _, a := range aims {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", strings.ToUpper(a.aim[:1])+a.aim[1:], a.stops)
		b.WriteString("| attack | plain bridge | `strict` | `source` | after a flush |\n|---|---|---|---|---|\n")
		for name, x := range in(a.aim) {
			plain := "**X**"
			if x.plainStops != "" {
				plain = strings.Replace(note(x.plainStops), "**X**", "–", 1)
			}
			fmt.Fprintf(&b, "| %s | %s | – | %s | %s |\n", name, plain, note(x.sourceLets), note(x.flushedLets))
		}
	}
	b.WriteString("\n## Why\n\n")
	for i, why := range notes {
		fmt.Fprintf(&b, "%d. %s.\n", i+1, strings.ToUpper(why[:1])+why[1:])
	}
	return b.String()
}

func TestTheAttacksAreDocumented(t *testing.T) {
	const file = "../../../docs/attacks.md"
	want := page()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s is not what the table says; write it anew with -update (-want +got):\n%s", file, diff)
	}
	if len(aims) != len(attacks) {
		t.Errorf("%d aims are described; there are %d", len(aims), len(attacks))
	}
}
