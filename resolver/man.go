//go:build man

// With the build tag man the program is one that writes what the Debian package has of the
// commands: their manual pages, and the completion for bash. So the service itself links
// no renderer of Markdown.
package main

import (
	"log"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: go run -tags man ./resolver DIRECTORY")
	}
	if err := write(command(), os.Args[1]); err != nil {
		log.Fatal("man: ", err)
	}
}

// write writes the files into a directory. Their date is SOURCE_DATE_EPOCH, or now.
func write(root *cobra.Command, dir string) error {
	if err := root.GenBashCompletionFileV2(filepath.Join(dir, "ecs-resolver.bash"), true); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	root.Flags().VisitAll(func(f *pflag.Flag) { // those of serve
		f.Usage = manual[f.Name]
		if f.Usage == "" {
			log.Fatalf("man: the manual page of serve has nothing on --%s", f.Name)
		}
	})
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Hidden = true // what it does is installed
		}
	}
	return doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "taskmeta " + version, Manual: "System Manager's Manual"}, dir)
}

// manual is what the manual page of serve says of its flags, where the help has no room.
var manual = map[string]string{
	"admin":             "Where operators ask: a loopback address and port, or unix:PATH for a socket that only root opens. It has a status page, /status.json, /metrics, /healthz and /readyz.",
	"allow-host":        "A further name that the Host header of a request may hold, beside 169.254.170.2 and the addresses that are listened on. May be repeated.",
	"auto-attach":       "Attach every container that starts with the label com.amazonaws.ecs.task-arn and has a network namespace of its own, and detach it at its end.",
	"availability-zone": "AvailabilityZone in the answers.",
	"bridge":            "The bridge that carries 169.254.170.2 and to which the sockets are bound. It is made when it is missing. none: the sockets are not bound, and no bridge, address or table is made.",
	"burst":             "How many requests a task may make at once.",
	"cni-path":          "The folders, with colons between, in which the plugins are looked for; by default the program's own, /opt/cni/bin, /usr/lib/cni and /usr/libexec/cni.",
	"db":                "The bindings file that ecs-ipam(8) writes; also IPAM_DB_PATH.",
	"docker-host":       "The URL of the Docker daemon; by default DOCKER_HOST, else unix:///var/run/docker.sock.",
	"guard":             "What the host's table lets tasks reach, as the key guard of ecs-bridge(8): strict, source or off.",
	"instance-tag":      "A KEY=VALUE of ContainerInstanceTags in the answers. May be repeated.",
	"listen":            "Where tasks ask: an address and port, or fd:N for an open socket. May be repeated; by default systemd's sockets, else 169.254.170.2:80.",
	"log-format":        "text, json, or auto: text on a terminal.",
	"log-level":         "The least level that is logged: debug, info, warn or error.",
	"net-dir":           "The folder in which the network named by --network is configured.",
	"network":           "The name of the CNI network by which containers are attached, which no other runtime may use; by default one that is built in.",
	"rate":              "How many requests per second a task may make; 0 for any number.",
	"netns":             "Where the endpoint's own network namespace is mounted. Default: netns in the folder of the bindings file. host: the bridge stands among the host's interfaces.",
	"witness":           "require: a connection must have its other end in the task's network namespace. off: the address is enough.",
}
