package metadata

import (
	"net/url"
	"strings"

	"taskmeta/internal/ecs"
)

// route tells the endpoint that a request's target names, and the ID in it. The target is
// taken as it was sent: nothing is cleaned, so what is not exactly a path of the API
// (doubled slashes, dots, an absolute URL) is no path. Only the ID may be escaped, since
// it ends in a comparison with the names of the task's own containers.
func route(target string) (endpoint, id string) {
	path, _, _ := strings.Cut(target, "?")
	path, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return EndpointNone, ""
	}
	resource, id, _ := strings.Cut(path, "/")
	if id == "" { // one slash at the end, or none
		switch resource {
		case "metadata":
			return EndpointTask, ""
		case "metadataWithTags":
			return EndpointTaskWithTags, ""
		case "stats":
			return EndpointTaskStats, ""
		}
		return EndpointNone, ""
	}
	id = strings.TrimSuffix(id, "/")
	if id == "" || strings.Contains(id, "/") {
		return EndpointNone, ""
	}
	id, err := url.PathUnescape(id)
	if err != nil {
		return EndpointNone, ""
	}
	switch resource {
	case "metadata":
		return EndpointContainer, id
	case "stats":
		return EndpointContainerStats, id
	}
	return EndpointNone, ""
}

// minPrefix is the length of the IDs that the docker command shows: a shorter prefix
// names no container.
const minPrefix = 12

// find is the index of the container that id names, or -1 if none or more than one does.
// A full ID comes before a name, and a name before a prefix of an ID.
func find(containers []ecs.Container, id string) int {
	matches := []func(*ecs.Container) bool{
		func(c *ecs.Container) bool { return c.ID == id },
		func(c *ecs.Container) bool { return c.Name == id },
		func(c *ecs.Container) bool { return len(id) >= minPrefix && strings.HasPrefix(c.ID, id) },
	}
	for _, match := range matches {
		found := -1
		for i := range containers {
			if !match(&containers[i]) {
				continue
			}
			if found >= 0 {
				return -1
			}
			found = i
		}
		if found >= 0 {
			return found
		}
	}
	return -1
}
