package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"taskmeta/internal/admin"
	"taskmeta/internal/attach"
	"taskmeta/internal/bindingdb"
	"taskmeta/internal/docker"
	"taskmeta/internal/ecs"
	"taskmeta/internal/endpoint"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// A finding is what became of one check.
type finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
}

func statusCommand() *cobra.Command {
	var f flags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether all is in place on this host, and if not what to do",
		Long: `Status looks for all that a task's question needs, from the plugins to the
listener, and asks the resolver that runs how it is. Flags that serve was given
are given to status too. Exit code 1: something is not in place.`,
		Example: "  ecs-resolver status",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mode, err := f.mode()
			if err != nil {
				return err
			}
			listen, err := f.addresses()
			if err != nil {
				return err
			}
			if err := f.checkAdmin(); err != nil {
				return err
			}
			daemon, err := f.client()
			if err != nil {
				return err
			}
			at, err := f.attacher(daemon, slog.Default())
			if err != nil {
				return err
			}
			host, err := link.Open(at.Netns)
			if err != nil {
				return err
			}
			defer host.Close()
			c := checks{daemon: daemon, at: at, host: host, f: &f, mode: mode, listen: listen}
			found := c.run(cmd.Context())
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), found)
			} else {
				err = writeFindings(cmd.OutOrStdout(), found)
			}
			if bad := slices.ContainsFunc(found, func(f finding) bool { return !f.OK }); bad && err == nil {
				err = errors.New("not everything is in place: see the lines marked WRONG")
			}
			return err
		},
	}
	f.dataFlags(cmd.Flags())
	f.placeFlags(cmd.Flags())
	f.endpointFlags(cmd.Flags())
	f.pluginFlags(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// checks are what status looks at, and what it has found so far.
type checks struct {
	daemon *docker.Client
	at     *attach.Attacher
	host   *link.Host // where the bridge stands
	f      *flags
	mode   guard.Mode
	listen []netip.AddrPort

	found []finding
}

// check makes one check, and reports whether all is well.
func (c *checks) check(name string, do func() (string, error)) bool {
	says, err := do()
	if err != nil {
		says = advised(err).Error()
	}
	c.found = append(c.found, finding{name, err == nil, says})
	return err == nil
}

// wrong are the names of those checks, of the named ones, that have found something.
func (c *checks) wrong(names ...string) (wrong []string) {
	for _, f := range c.found {
		if !f.OK && slices.Contains(names, f.Name) && !slices.Contains(wrong, f.Name) {
			wrong = append(wrong, f.Name)
		}
	}
	return wrong
}

// run makes every check, the last ones by what the resolver says of itself.
func (c *checks) run(ctx context.Context) []finding {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	c.tools(ctx)
	c.place()
	says, err := askResolver(ctx, c.f.admin)
	if err != nil {
		return append(c.found, finding{Name: "resolver", Says: err.Error()})
	}
	for _, s := range says.Checks {
		c.found = append(c.found, finding{"resolver: " + s.Name, s.OK, cmp.Or(s.Problem, "ok")})
	}
	c.check("containers", func() (string, error) {
		return "none of a task's can change the host's network", checkContainers(says)
	})
	if c.f.hasBridge() {
		c.check("question", func() (string, error) { return c.question(ctx, says) })
	}
	return c.found
}

// tools are what attaching a container takes.
func (c *checks) tools(ctx context.Context) {
	c.check("daemon", func() (string, error) { return c.daemon.Version(ctx) })
	if c.check("plugins", func() (string, error) {
		paths, err := c.at.Plugins(ctx)
		return strings.Join(paths, ", "), err
	}) {
		c.check("attaching", func() (string, error) { return "a container could be attached now", c.at.Ready(ctx) })
	}
	c.check("bindings", func() (string, error) {
		all, err := readBindings(c.f.db)
		return fmt.Sprintf("%d in %s", len(all), c.f.db), err
	})
}

// place is what tasks ask.
func (c *checks) place() {
	if c.f.hasBridge() {
		bridge := c.f.bridge
		c.check("bridge", func() (string, error) {
			ports, err := endpoint.CheckBridge(c.host, bridge, func() ([]*ecs.Binding, error) { return readBindings(c.f.db) })
			return fmt.Sprintf("%s is up, with %d tasks", bridge, ports), err
		})
		c.check("address", func() (string, error) {
			return fmt.Sprintf("%s is on %s", ecs.EndpointAddr, bridge), endpoint.CheckAddress(c.host, bridge)
		})
		c.check("guard", func() (string, error) {
			if c.mode == guard.Off {
				return "off", nil
			}
			if !onHosts(c.host.NS) {
				return "no table of the host's: the bridge stands in a network namespace of its own", nil
			}
			return fmt.Sprintf("the host's table is whole (%s)", c.mode), endpoint.CheckTable(c.host, bridge, c.mode)
		})
	}
	for _, l := range c.listen {
		c.check("listener", func() (string, error) { return fmt.Sprintf("tasks are heard at %s", l), checkListener(c.host.NS, l) })
	}
}

// question asks the endpoint as a task does, where nothing would be made for it that is not
// there.
func (c *checks) question(ctx context.Context, says *admin.Status) (string, error) {
	if wrong := c.wrong("plugins", "attaching", "bindings", "bridge", "listener"); len(wrong) > 0 {
		return "", fmt.Errorf("the endpoint was not asked: first see to %s", strings.Join(wrong, ", "))
	}
	return question{c.at, c.host, c.f.bridge, says}.ask(ctx)
}

// checkContainers looks for containers of tasks that no guard holds.
func checkContainers(says *admin.Status) error {
	if names := says.Uncontained(); len(names) > 0 {
		return fmt.Errorf("%s can change the host's network, and cut off other tasks: start it without CAP_NET_ADMIN and CAP_SYS_ADMIN, or with a user namespace of its own (userns-remap)", strings.Join(names, ", "))
	}
	return nil
}

// readBindings reads the bindings file.
func readBindings(path string) ([]*ecs.Binding, error) {
	reader, err := bindingdb.NewReader(path, bindingdb.Options{})
	if err != nil {
		return nil, err
	}
	s, err := reader.Snapshot()
	if err != nil {
		return nil, err
	}
	return s.All(), nil
}

// checkListener looks for a socket that listens there.
func checkListener(ns *netns.NS, at netip.AddrPort) error {
	all, err := listeners(ns)
	if err != nil {
		return err
	}
	if slices.Contains(all, at) || slices.Contains(all, netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())) || slices.Contains(all, netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())) {
		return nil
	}
	return fmt.Errorf("nothing listens at %s: start `ecs-resolver serve`, or name its --listen", at)
}

// askResolver asks the resolver that runs what it says of each of its parts.
func askResolver(ctx context.Context, at string) (*admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	network, host := "tcp", at
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		network, at, host = "unix", path, "localhost"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/status.json", nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, at)
		},
		DisableKeepAlives: true,
	}}
	reply, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("no resolver answers at %s (%w): `systemctl start ecs-resolver`, or `ecs-resolver serve`", at, errors.Unwrap(err))
	}
	defer reply.Body.Close()
	says := &admin.Status{}
	if err := json.NewDecoder(reply.Body).Decode(says); err != nil {
		return nil, fmt.Errorf("%s answers with %s and no JSON: is another program there?", at, reply.Status)
	}
	return says, nil
}

func writeFindings(w io.Writer, found []finding) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range found {
		mark := "ok"
		if !f.OK {
			mark = "WRONG"
		}
		says := f.Says
		if says == "ok" {
			says = "works"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", mark, f.Name, says)
	}
	return t.Flush()
}
