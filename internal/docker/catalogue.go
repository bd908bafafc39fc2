package docker

import (
	"cmp"
	"slices"
	"strings"

	"taskmeta/internal/ecs"
)

// shortID is how much of a container's ID Docker shows, and the least that a binding may
// name one by.
const shortID = 12

// An entry is what is kept of one container. Its labels and its network mode, and so its
// ARN and what it joins, are the same for as long as the container lives.
type entry struct {
	id    string
	arn   string // by its task-ARN label
	joins string // ID of the container whose network namespace it shares
	host  bool   // it lives in the host's network namespace
	pid   int    // of its first process, 0 while it does not run

	// container is nil until it has been inspected.
	container *ecs.Container
}

// A catalogue is the containers, by all that is asked for. It needs a lock around it.
type catalogue struct {
	entries map[string]*entry
	// byShort has them by the start of their ID, byARN by the label, byJoined by whose
	// network namespace they share.
	byShort, byARN, byJoined group
}

type group map[string][]*entry

func (g group) add(key string, e *entry) {
	if key != "" {
		g[key] = append(g[key], e)
	}
}

func (g group) remove(key string, e *entry) {
	rest := slices.DeleteFunc(g[key], func(other *entry) bool { return other == e })
	if len(rest) == 0 {
		delete(g, key)
		return
	}
	g[key] = rest
}

func newCatalogue() catalogue {
	return catalogue{entries: make(map[string]*entry), byShort: make(group), byARN: make(group), byJoined: make(group)}
}

// put adds an entry, in place of the one that the container has.
func (c *catalogue) put(e *entry) {
	c.remove(e.id)
	c.entries[e.id] = e
	c.byShort.add(e.id[:shortID], e)
	c.byARN.add(e.arn, e)
	c.byJoined.add(e.joins, e)
}

func (c *catalogue) remove(id string) {
	e := c.entries[id]
	if e == nil {
		return
	}
	delete(c.entries, id)
	c.byShort.remove(e.id[:shortID], e)
	c.byARN.remove(e.arn, e)
	c.byJoined.remove(e.joins, e)
}

// find returns the container of a full ID, or the only one of an ID's start.
func (c *catalogue) find(id string) *entry {
	if e := c.entries[id]; e != nil || len(id) < shortID {
		return e
	}
	var found *entry
	for _, e := range c.byShort[id[:shortID]] {
		if strings.HasPrefix(e.id, id) {
			if found != nil {
				return nil
			}
			found = e
		}
	}
	return found
}

// root returns the container that owns the network namespace that e lives in; e itself
// if that is not known.
func (c *catalogue) root(e *entry) *entry {
	for range len(c.entries) { // two that join each other cannot be, but must not hang us
		next := c.entries[e.joins]
		if next == nil {
			break
		}
		e = next
	}
	return e
}

// A family is the containers of a task.
type family struct {
	owner   *entry // whose network namespace the task lives in; nil if unknown
	members []*entry
}

// add adds a container and those that share its network namespace.
func (f *family) add(c *catalogue, e *entry) {
	if slices.Contains(f.members, e) {
		return
	}
	f.members = append(f.members, e)
	for _, joined := range c.byJoined[e.id] {
		f.add(c, joined)
	}
}

// family finds the containers of a binding: the one that the binding names, what carries
// the label of its task, and what shares their network namespaces. A container that lives
// in the namespace of another task belongs to that one, whatever its label says.
func (c *catalogue) family(b *ecs.Binding) (f family) {
	arn := cmp.Or(b.TaskARN, b.Labels[ecs.LabelTaskARN])
	if e := c.find(b.Owner()); e != nil {
		f.owner = c.root(e)
		f.add(c, f.owner)
		arn = cmp.Or(arn, f.owner.arn)
	}
	if arn == "" {
		return f
	}
	named := f.owner != nil
	for _, e := range c.byARN[arn] {
		root := c.root(e)
		foreign := root != e && root != f.owner && root.arn != arn
		if !foreign || !named && root.arn == "" {
			f.add(c, root)
		}
	}
	if !named {
		f.owner = c.sharedAmong(f.members)
	}
	return f
}

// sharedAmong returns the container whose network namespace others of the members share,
// the one of the least ID if there are several.
func (c *catalogue) sharedAmong(members []*entry) (owner *entry) {
	for _, e := range members {
		if len(c.byJoined[e.id]) > 0 && c.root(e) == e && (owner == nil || e.id < owner.id) {
			owner = e
		}
	}
	return owner
}
