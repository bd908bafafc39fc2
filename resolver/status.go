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
			found := runChecks(cmd.Context(), daemon, at, host, &f, mode, listen)
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

// runChecks makes every check, the last ones by what the resolver says of itself.
func runChecks(ctx context.Context, daemon *docker.Client, at *attach.Attacher, host *link.Host, f *flags, mode guard.Mode, listen []netip.AddrPort) []finding {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var found []finding
	check := func(name string, do func() (string, error)) bool {
		says, err := do()
		if err != nil {
			says = advised(err).Error()
		}
		found = append(found, finding{name, err == nil, says})
		return err == nil
	}
	check("daemon", func() (string, error) { return daemon.Version(ctx) })
	if check("plugins", func() (string, error) {
		paths, err := at.Plugins(ctx)
		return strings.Join(paths, ", "), err
	}) {
		check("attaching", func() (string, error) { return "a container could be attached now", at.Ready(ctx) })
	}
	check("bindings", func() (string, error) {
		all, err := readBindings(f.db)
		return fmt.Sprintf("%d in %s", len(all), f.db), err
	})
	if f.hasBridge() {
		check("bridge", func() (string, error) {
			ports, err := endpoint.CheckBridge(host, f.bridge, func() ([]*ecs.Binding, error) { return readBindings(f.db) })
			return fmt.Sprintf("%s is up, with %d tasks", f.bridge, ports), err
		})
		check("address", func() (string, error) {
			return fmt.Sprintf("%s is on %s", ecs.EndpointAddr, f.bridge), endpoint.CheckAddress(host, f.bridge)
		})
		check("guard", func() (string, error) {
			if mode == guard.Off {
				return "off", nil
			}
			return fmt.Sprintf("the host's table is whole (%s)", mode), endpoint.CheckTable(host, f.bridge, mode)
		})
	}
	for _, l := range listen {
		check("listener", func() (string, error) { return fmt.Sprintf("tasks are heard at %s", l), checkListener(host.NS, l) })
	}
	says, err := askResolver(ctx, f.admin)
	if err != nil {
		return append(found, finding{Name: "resolver", Says: err.Error()})
	}
	for _, c := range says.Checks {
		found = append(found, finding{"resolver: " + c.Name, c.OK, cmp.Or(c.Problem, "ok")})
	}
	check("containers", func() (string, error) {
		return "none of a task's can change the host's network", checkContainers(says)
	})
	return found
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
