package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"taskmeta/internal/attach"
	"taskmeta/internal/bindingdb"
	"taskmeta/internal/ecs"
	"taskmeta/internal/link"
)

// A finding is what became of one check.
type finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
}

func statusCommand() *cobra.Command {
	var a attachment
	var admin string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether everything is in place on this host, and if not what to do",
		Long: `Status looks at the plugins, the Docker daemon, the bindings file, the bridge with
169.254.170.2, and asks the resolver that runs how it is. Exit code 1: something is
not in place.`,
		Example: "  ecs-resolver status",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := a.open(slog.Default())
			if err != nil {
				return err
			}
			found := look(cmd.Context(), at, &a, admin)
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), found)
			} else {
				err = writeFindings(cmd.OutOrStdout(), found)
			}
			if bad := slices.ContainsFunc(found, func(f finding) bool { return !f.OK }); bad && err == nil {
				err = errors.New("not everything is in place")
			}
			return err
		},
	}
	f := cmd.Flags()
	a.placeFlags(f)
	f.StringVar(&a.bridge, "bridge", "ecs-bridge", "the bridge that carries 169.254.170.2; none: there is none")
	f.StringVar(&admin, "admin", "127.0.0.1:51680", "the admin listener of the resolver, as `serve` has it")
	a.pluginFlags(f)
	f.BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// look makes every check, the last ones by what the resolver says of itself.
func look(ctx context.Context, at *attach.Attacher, a *attachment, admin string) []finding {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var found []finding
	check := func(name string, do func() (string, error)) {
		says, err := do()
		if err != nil {
			says = permitted(err).Error()
		}
		found = append(found, finding{name, err == nil, says})
	}
	check("docker", func() (string, error) { return at.Daemon(ctx) })
	check("plugins", func() (string, error) {
		paths, err := at.Plugins(ctx)
		return strings.Join(paths, ", "), err
	})
	check("attaching", func() (string, error) { return "a container could be attached now", at.Ready(ctx) })
	check("bindings", func() (string, error) {
		reader, err := bindingdb.NewReader(a.db, bindingdb.Options{})
		if err != nil {
			return "", err
		}
		s, err := reader.Snapshot()
		if errors.Is(err, ecs.ErrDamaged) {
			err = fmt.Errorf("%w: `ecs-resolver bindings repair` writes it anew", err)
		}
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%d in %s", len(s.All()), a.db), nil
	})
	if a.bridge != "none" {
		check("bridge", func() (string, error) { return lookAtBridge(a.bridge) })
		check("address", func() (string, error) { return lookAtAddress(a.bridge) })
	}
	says, err := askResolver(ctx, admin)
	if err != nil {
		return append(found, finding{Name: "resolver", Says: err.Error()})
	}
	for _, part := range sortedKeys(says) {
		found = append(found, finding{"resolver: " + part, says[part] == "ok", says[part]})
	}
	return found
}

// lookAtBridge looks for the bridge, and for ports of it that are no task's.
func lookAtBridge(name string) (string, error) {
	host, err := link.OpenHost()
	if err != nil {
		return "", err
	}
	defer host.Close()
	b, err := host.Bridge(name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return "", fmt.Errorf("there is no bridge %s: `ecs-resolver serve` makes it", name)
	case err != nil:
		return "", err
	case !b.Up:
		return "", fmt.Errorf("%s is down: `ip link set %[1]s up`", name)
	}
	ports, err := host.Ports(b)
	if err != nil {
		return "", err
	}
	for _, p := range ports {
		if p.Veth == nil {
			return "", fmt.Errorf("%s has the port %s, which is no task's and could speak for any of them: `ip link set %[2]s nomaster`", name, p.Name)
		}
	}
	return fmt.Sprintf("%s is up, with %d tasks", name, len(ports)), nil
}

// lookAtAddress looks for the address that tasks ask.
func lookAtAddress(bridge string) (string, error) {
	all, err := link.Addresses("/proc/thread-self/ns/net")
	if err != nil {
		return "", err
	}
	for _, addr := range all {
		if addr.IfName == bridge && addr.Addr() == ecs.EndpointAddr {
			return fmt.Sprintf("%s is on %s", ecs.EndpointAddr, bridge), nil
		}
	}
	return "", fmt.Errorf("%s is not on %s: `ecs-resolver serve` adds it", ecs.EndpointAddr, bridge)
}

// askResolver asks the resolver that runs what it says of each of its parts.
func askResolver(ctx context.Context, admin string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	network, host := "tcp", admin
	if path, ok := strings.CutPrefix(admin, "unix:"); ok {
		network, admin, host = "unix", path, "localhost"
	} else if _, err := netip.ParseAddrPort(admin); err != nil {
		return nil, fmt.Errorf("--admin %q: expected a loopback address and a port, such as 127.0.0.1:51680, or unix:PATH", admin)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/readyz", nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, admin)
		},
		DisableKeepAlives: true,
	}}
	reply, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("no resolver answers at %s (%w): `systemctl start ecs-resolver`, or `ecs-resolver serve`", admin, errors.Unwrap(err))
	}
	defer reply.Body.Close()
	var says map[string]string
	if err := json.NewDecoder(reply.Body).Decode(&says); err != nil {
		return nil, fmt.Errorf("%s answers with %s and no JSON: is another program there?", admin, reply.Status)
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
			says = ""
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", mark, f.Name, says)
	}
	return t.Flush()
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
