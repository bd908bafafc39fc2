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
	"golang.org/x/sys/unix"

	"taskmeta/internal/admin"
	"taskmeta/internal/attach"
	"taskmeta/internal/bindingdb"
	"taskmeta/internal/ecs"
	"taskmeta/internal/endpoint"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// A finding is what became of one check.
type finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
}

// A place is where status looks for what serve makes.
type place struct {
	attachment
	guard  string
	listen []string
	admin  string
}

func statusCommand() *cobra.Command {
	var p place
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
			mode, listen, err := p.check()
			if err != nil {
				return err
			}
			at, err := p.open(slog.Default())
			if err != nil {
				return err
			}
			found := look(cmd.Context(), at, &p, mode, listen)
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
	f := cmd.Flags()
	p.placeFlags(f)
	f.StringVar(&p.bridge, "bridge", defaultBridge, "`NAME` as serve has it")
	f.StringVar(&p.guard, "guard", string(guard.Strict), "`MODE` as serve has it")
	f.StringArrayVar(&p.listen, "listen", []string{defaultListen}, "`ADDR:PORT` as serve has it")
	f.StringVar(&p.admin, "admin", defaultAdmin, "`ADDR:PORT` or unix:PATH, as serve has it")
	p.pluginFlags(f)
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// check reads the flags whose values can be wrong.
func (p *place) check() (mode guard.Mode, listen []netip.AddrPort, err error) {
	if mode, err = guard.ParseMode(p.guard); err != nil {
		return mode, nil, usageError{fmt.Errorf("--%w", err)}
	}
	for _, text := range p.listen {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return mode, nil, usageError{fmt.Errorf("--listen %q: expected an address and a port, such as %s", text, defaultListen)}
		}
		listen = append(listen, at)
	}
	if !strings.HasPrefix(p.admin, "unix:") {
		if _, err := netip.ParseAddrPort(p.admin); err != nil {
			return mode, nil, usageError{fmt.Errorf("--admin %q: expected a loopback address and a port, such as %s, or unix:PATH", p.admin, defaultAdmin)}
		}
	}
	return mode, listen, nil
}

// look makes every check, the last ones by what the resolver says of itself.
func look(ctx context.Context, at *attach.Attacher, p *place, mode guard.Mode, listen []netip.AddrPort) []finding {
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
	check("daemon", func() (string, error) { return at.Daemon(ctx) })
	if check("plugins", func() (string, error) {
		paths, err := at.Plugins(ctx)
		return strings.Join(paths, ", "), err
	}) {
		check("attaching", func() (string, error) { return "a container could be attached now", at.Ready(ctx) })
	}
	check("bindings", func() (string, error) { return lookAtBindings(p.db) })
	if p.bridge != "none" {
		check("bridge", func() (string, error) { return lookAtBridge(p.bridge, p.db) })
		check("address", func() (string, error) { return lookAtAddress(p.bridge) })
		check("guard", func() (string, error) { return lookAtGuard(p.bridge, mode) })
	}
	for _, l := range listen {
		check("listener", func() (string, error) { return lookAtListener(l) })
	}
	says, err := askResolver(ctx, p.admin)
	if err != nil {
		return append(found, finding{Name: "resolver", Says: err.Error()})
	}
	for _, c := range says.Checks {
		found = append(found, finding{"resolver: " + c.Name, c.OK, cmp.Or(c.Problem, "ok")})
	}
	check("containers", func() (string, error) { return lookAtContainers(says) })
	return found
}

// lookAtContainers looks for containers of tasks that no guard holds.
func lookAtContainers(says *admin.Status) (string, error) {
	if names := says.Uncontained(); len(names) > 0 {
		return "", fmt.Errorf("%s can change the host's network, and cut off other tasks: start it without CAP_NET_ADMIN and CAP_SYS_ADMIN, or with a user namespace of its own (userns-remap)", strings.Join(names, ", "))
	}
	return "none of a task's can change the host's network", nil
}

// lookAtBindings reads the bindings file.
func lookAtBindings(path string) (string, error) {
	reader, err := bindingdb.NewReader(path, bindingdb.Options{})
	if err != nil {
		return "", err
	}
	s, err := reader.Snapshot()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d in %s", len(s.All()), path), nil
}

// lookAtGuard looks at the host's table. With the guard off there is to be none.
func lookAtGuard(bridge string, mode guard.Mode) (string, error) {
	if mode == guard.Off {
		return "off", nil
	}
	if _, err := net.InterfaceByName(bridge); err != nil {
		return "", fmt.Errorf("there is no bridge %s to guard: `ecs-resolver serve` makes both", bridge)
	}
	if err := (guard.Host{Bridge: bridge, Mode: mode}).Check(); errors.Is(err, guard.ErrOpen) {
		return "", fmt.Errorf("%w: `ecs-resolver serve --guard %s` makes it", err, mode)
	} else if err != nil {
		return "", err
	}
	return fmt.Sprintf("the host's table is whole (%s)", mode), nil
}

// lookAtListener looks for a socket that listens there.
func lookAtListener(at netip.AddrPort) (string, error) {
	all, err := listeners()
	if err != nil {
		return "", err
	}
	if slices.Contains(all, at) || slices.Contains(all, netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())) || slices.Contains(all, netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())) {
		return fmt.Sprintf("tasks are heard at %s", at), nil
	}
	return "", fmt.Errorf("nothing listens at %s: start `ecs-resolver serve`, or name its --listen", at)
}

// lookAtBridge looks for the bridge, and for ports of it that are no task's.
func lookAtBridge(name, db string) (string, error) {
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
	reader, err := bindingdb.NewReader(db, bindingdb.Options{})
	if err != nil {
		return "", err
	}
	for _, p := range endpoint.Strange(ports, endpoint.HeldIn(reader)) {
		return "", fmt.Errorf("%s has the port %s, which is no task's and could speak for any of them: `ip link set %[2]s nomaster`", name, p.Name)
	}
	return fmt.Sprintf("%s is up, with %d tasks", name, len(ports)), nil
}

// lookAtAddress looks for the address that tasks ask.
func lookAtAddress(bridge string) (string, error) {
	missing := fmt.Errorf("%s is not on %s: `ecs-resolver serve` adds it", ecs.EndpointAddr, bridge)
	found, err := net.InterfaceByName(bridge)
	if err != nil {
		return "", missing
	}
	addrs, err := found.Addrs()
	if err != nil {
		return "", fmt.Errorf("listing the addresses of %s: %w", bridge, err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == ecs.EndpointAddr {
			return fmt.Sprintf("%s is on %s", ecs.EndpointAddr, bridge), nil
		}
	}
	return "", missing
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
