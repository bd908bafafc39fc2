// Ecs-ipam is a CNI plugin that gives each attachment of a task an address of its own and
// records whose it is.
package main

import (
	"taskmeta/internal/cniedge"
	"taskmeta/internal/ipam"
)

// version is set by the build.
var version = "unknown"

func main() { cniedge.Main(ipam.Plugin(version)) }
