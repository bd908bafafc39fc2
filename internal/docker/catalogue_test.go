package docker

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet/fakedocker"
	"taskmeta/internal/ecs"
)

// longID is a full container ID that starts with a readable name.
func longID(name string) string { return name + strings.Repeat("0", 64-len(name)) }

// outlined is what a family depends on of a container.
type outlined struct{ name, joins, arn string }

func TestFamily(t *testing.T) {
	t.Parallel()
	const mine, theirs = "arn:mine", "arn:theirs"
	tests := map[string]struct {
		containers []outlined
		owner, arn string
		want       string // members by name, the owner of the namespace first
	}{
		"nothing is known": {owner: "pause", arn: mine, want: ""},
		"the owner alone":  {[]outlined{{"pause", "", ""}}, "pause", "", "pause"},
		"by network namespace": {
			[]outlined{{"pause", "", ""}, {"app", "pause", ""}, {"other", "", ""}, {"stranger", "other", ""}}, "pause", "", "pause app",
		},
		"by label": {
			[]outlined{{"pause", "", mine}, {"app", "", mine}, {"other", "", theirs}}, "pause", "", "pause app",
		},
		"by the binding's ARN, where the owner has no label": {
			[]outlined{{"pause", "", ""}, {"app", "", mine}}, "pause", mine, "pause app",
		},
		"the namespace wins over a label that says ours": {
			[]outlined{{"pause", "", mine}, {"app", "pause", mine}, {"other", "", theirs}, {"liar", "other", mine}}, "pause", "", "pause app",
		},
		"the namespace wins over a label that says ours, of an owner without label": {
			[]outlined{{"pause", "", ""}, {"other", "", ""}, {"liar", "other", mine}}, "pause", mine, "pause",
		},
		"the namespace wins over a label that says theirs": {
			[]outlined{{"pause", "", mine}, {"app", "pause", theirs}}, "pause", "", "pause app",
		},
		"a namespace shared in two steps": {
			[]outlined{{"pause", "", ""}, {"app", "pause", ""}, {"debug", "app", ""}}, "pause", "", "pause app debug",
		},
		"the binding names one that shares": {
			[]outlined{{"pause", "", ""}, {"app", "pause", ""}, {"sidecar", "pause", ""}}, "app", "", "pause app sidecar",
		},
		"an owner that is no container": {
			[]outlined{{"pause", "", ""}, {"app", "pause", mine}, {"other", "", theirs}, {"liar", "other", mine}, {"alone", "", mine}},
			"sandbox", mine, "pause alone app",
		},
		"an owner that is no container, and nothing shared": {
			[]outlined{{"app", "", mine}, {"batch", "", mine}}, "sandbox", mine, " app batch",
		},
		"the joined container is gone": {
			[]outlined{{"pause", "", mine}, {"app", "gone", mine}}, "pause", "", "pause app",
		},
		"two that join each other": {
			[]outlined{{"a", "b", mine}, {"b", "a", mine}}, "a", mine, "a b",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, reversed := range []bool{false, true} {
				if reversed {
					slices.Reverse(test.containers)
				}
				b := &ecs.Binding{Attachment: ecs.Attachment{Container: longID(test.owner)}, TaskARN: test.arn}
				if got := familyOf(t, b, test.containers); got != test.want {
					t.Errorf("family %q, want %q", got, test.want)
				}
			}
		})
	}
}

// familyOf are the members of the binding's family among the containers, by name, and the
// owner first, or nothing in its place. It checks that all of them can be removed.
func familyOf(t *testing.T, b *ecs.Binding, containers []outlined) string {
	t.Helper()
	cat := newCatalogue()
	for _, c := range containers {
		e := &entry{id: longID(c.name), arn: c.arn}
		if c.joins != "" {
			e.joins = longID(c.joins)
		}
		cat.put(e)
		cat.put(e) // as each inspection does
	}
	f := cat.family(b)
	var names []string
	for _, e := range f.members {
		if e != f.owner {
			names = append(names, strings.TrimRight(e.id, "0"))
		}
	}
	slices.Sort(names)
	got := strings.Join(names, " ")
	if f.owner != nil {
		got = strings.TrimSpace(strings.TrimRight(f.owner.id, "0") + " " + got)
	} else if got != "" {
		got = " " + got
	}

	for _, c := range containers {
		cat.remove(longID(c.name))
	}
	if left := len(cat.entries) + len(cat.byShort) + len(cat.byARN) + len(cat.byJoined); left > 0 {
		t.Errorf("%d entries are left after all containers went", left)
	}
	return got
}

func TestFind(t *testing.T) {
	t.Parallel()
	cat := newCatalogue()
	for _, id := range []string{longID("abcdefabcdef1"), longID("abcdefabcdef2"), longID("123456123456")} {
		cat.put(&entry{id: id})
	}
	tests := map[string]struct{ id, want string }{
		"a full ID":                   {longID("abcdefabcdef2"), "abcdefabcdef2"},
		"the start of one":            {"123456123456", "123456123456"},
		"a longer start":              {"abcdefabcdef1", "abcdefabcdef1"},
		"a start that two have":       {"abcdefabcdef", ""},
		"a start that is too short":   {"12345612345", ""},
		"more than an ID":             {longID("123456123456") + "0", ""},
		"a start with another ending": {"123456123456f", ""},
		"nothing":                     {"", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := ""
			if e := cat.find(test.id); e != nil {
				got = strings.TrimRight(e.id, "0")
			}
			if got != test.want {
				t.Errorf("find(%q) = %q, want %q", test.id, got, test.want)
			}
		})
	}
}

// Whose a container is must be found without a walk over all: what this asks for is done
// for each request after an event.
func BenchmarkFamilyAmongTenThousand(b *testing.B) {
	cat := newCatalogue()
	for n := 0; n < 9999; n += 3 {
		cat.put(&entry{id: fakedocker.ID(n), arn: fmt.Sprint("arn", n)})
		cat.put(&entry{id: fakedocker.ID(n + 1), arn: fmt.Sprint("arn", n), joins: fakedocker.ID(n)})
		cat.put(&entry{id: fakedocker.ID(n + 2), arn: fmt.Sprint("arn", n), joins: fakedocker.ID(n)})
	}
	binding := &ecs.Binding{Attachment: ecs.Attachment{Container: fakedocker.ID(3000)}, TaskARN: "arn3000"}
	for b.Loop() {
		if f := cat.family(binding); len(f.members) != 3 {
			b.Fatalf("%d members", len(f.members))
		}
	}
}
