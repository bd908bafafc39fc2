package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"taskmeta/internal/attach"
	"taskmeta/internal/bindingdb"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

// namesTime is how long the Docker daemon may take to name containers: they are only for
// the reader's ease.
const namesTime = time.Second

// A row is a binding with the name that Docker has for its container, if it is known.
type row struct {
	*ecs.Binding
	Name string `json:"containerName,omitempty"`
}

func bindingsCommand() *cobra.Command {
	var f flags
	var asJSON bool
	list := func(cmd *cobra.Command, _ []string) error {
		return withRows(cmd, &f, func(rows []row) error {
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), rows)
			}
			return writeTable(cmd.OutOrStdout(), rows)
		})
	}
	cmd := &cobra.Command{
		Use:   "bindings",
		Short: "Show which container has which address; put the file in order",
		Example: `  ecs-resolver bindings
  ecs-resolver bindings show 169.254.172.2
  ecs-resolver bindings list --json | jq -r '.[].container'`,
		Args: usage(cobra.NoArgs),
		RunE: list,
	}
	f.dataFlags(cmd.PersistentFlags())
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(
		&cobra.Command{
			Use:     "list",
			Short:   "List all bindings, and how full the pool is (the default)",
			Example: "  ecs-resolver bindings list --json",
			Args:    usage(cobra.NoArgs),
			RunE:    list,
		},
		&cobra.Command{
			Use:     "show ADDRESS",
			Short:   "Show all that is recorded of one address",
			Example: "  ecs-resolver bindings show 169.254.172.2",
			Args:    usage(one("ADDRESS")),
			RunE: func(cmd *cobra.Command, args []string) error {
				addr, err := netip.ParseAddr(args[0])
				if err != nil {
					return usageError{fmt.Errorf("%q: expected an address such as 169.254.172.2", args[0])}
				}
				return withRows(cmd, &f, func(rows []row) error {
					for _, r := range rows {
						if !r.Has(addr) {
							continue
						}
						if asJSON {
							return writeJSON(cmd.OutOrStdout(), r)
						}
						return writeRow(cmd.OutOrStdout(), r)
					}
					return fmt.Errorf("%w for %s in %s: `ecs-resolver bindings` lists those there are", ecs.ErrNoBinding, addr, f.db)
				})
			},
		},
		collectCommand(&f, &asJSON),
		repairCommand(&f),
	)
	return cmd
}

func collectCommand(f *flags, asJSON *bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Free the addresses of tasks whose network namespace is gone",
		Long: `Gc detaches, by the plugins' DEL, every task whose network namespace is gone,
of whatever CNI network it was, and removes the veths that an ADD has left which
was cut short. What is in use stays.`,
		Example: "  ecs-resolver bindings gc",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAttacher(cmd, f, func(ctx context.Context, at *attach.Attacher) error {
				freed, err := at.Collect(ctx)
				if *asJSON {
					return errors.Join(err, writeJSON(cmd.OutOrStdout(), freed))
				}
				for _, b := range freed {
					if len(b.Addrs) == 0 {
						fmt.Fprintf(cmd.OutOrStdout(), "removed what was left of %s\n", b.Attachment)
						continue
					}
					fmt.Fprintf(cmd.OutOrStdout(), "freed %s of %s\n", addrs(b), b.Attachment)
				}
				if err == nil && len(freed) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "nothing to free: every binding has its network namespace, and every veth its binding")
				}
				return err
			})
		},
	}
	f.placeFlags(cmd.Flags())
	f.pluginFlags(cmd.Flags())
	return cmd
}

func repairCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Write a damaged bindings file anew, from the interfaces that exist",
		Long: `Repair writes the bindings file anew if it is damaged or missing: from the veth
pairs of this host, which say whose they are, and the addresses in the tasks'
network namespaces. The damaged file is kept beside it. What a runtime said of a
task (ARN, labels) is lost; the resolver then takes it from its containers.`,
		Example: "  ecs-resolver bindings repair",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return repair(cmd.Context(), cmd.OutOrStdout(), f)
		},
	}
	f.placeFlags(cmd.Flags())
	return cmd
}

// repair writes the bindings file anew, unless nothing is wrong with it.
func repair(ctx context.Context, w io.Writer, f *flags) error {
	path := f.db
	reader, err := bindingdb.NewReader(path, bindingdb.Options{})
	if err != nil {
		return err
	}
	_, damage := reader.Snapshot()
	if damage == nil {
		_, damage = os.Stat(path)
	}
	switch {
	case damage == nil:
		_, err := fmt.Fprintf(w, "nothing to do: %s is whole\n", path)
		return err
	case !errors.Is(damage, ecs.ErrDamaged) && !errors.Is(damage, fs.ErrNotExist):
		return damage
	}
	ns, err := f.place()
	if err != nil {
		return err
	}
	host, err := netns.Own() // where an earlier mode has put ports
	if err != nil {
		return err
	}
	found, lost, err := attach.Survey(ns, host)
	if err != nil {
		return err
	}
	kept, err := bindingdb.Restore(ctx, path, found, bindingdb.Options{})
	if err != nil {
		return fmt.Errorf("writing %s anew: %w", path, err)
	}
	fmt.Fprintln(w, damage)
	if kept != "" {
		fmt.Fprintln(w, "it is kept as", kept)
	}
	fmt.Fprintf(w, "%s was written anew with %d bindings\n", path, len(found))
	for _, b := range found {
		fmt.Fprintf(w, "  %s  %s\n", addrs(&b), b.Attachment)
	}
	for _, v := range lost {
		fmt.Fprintf(w, "  no address was found for %s (veth %s): detach and attach it again\n", v.Attachment, v.Name)
	}
	return nil
}

// withRows runs a command that needs the bindings.
func withRows(cmd *cobra.Command, f *flags, do func([]row) error) error {
	all, err := readBindings(f.db)
	if err != nil {
		return err
	}
	names := containerNames(cmd.Context(), f)
	rows := []row{}
	for _, b := range all {
		rows = append(rows, row{b, names[b.Owner()]})
	}
	return do(rows)
}

// containerNames are the names of Docker's containers by ID, none if it cannot be asked.
func containerNames(ctx context.Context, f *flags) map[string]string {
	daemon, err := f.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, namesTime)
	defer cancel()
	names, err := daemon.Names(ctx)
	if err != nil {
		return nil
	}
	return names
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeTable writes a line for each binding, and one for each subnet.
func writeTable(w io.Writer, rows []row) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "no address is held")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ADDRESS\tCONTAINER\tTASK\tNETWORK\tINTERFACE\tSINCE")
	held := make(map[netip.Prefix]uint64)
	var subnets []netip.Prefix
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join([]string{addrs(r.Binding), r.container(), short(r.TaskARN), r.Network, r.IfName, since(r.Created)}, "\t"))
		for _, p := range r.Addrs {
			if p = p.Masked(); held[p] == 0 {
				subnets = append(subnets, p)
			}
			held[p.Masked()]++
		}
	}
	for _, subnet := range subnets {
		if pool, err := ecs.NewPool(subnet, netip.Addr{}); err == nil {
			fmt.Fprintf(t, "\n%d of %d addresses of %s are held", held[subnet], pool.Count(), subnet)
		}
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// writeRow writes all that is recorded, a line for each thing.
func writeRow(w io.Writer, r row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	line("address", addrs(r.Binding))
	line("container", r.Container)
	line("name", r.Name)
	line("interface", r.IfName)
	line("network", r.Network)
	line("namespace", r.Netns)
	line("id", r.ID)
	line("task", r.TaskARN)
	line("since", since(r.Created))
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		line("label", key+"="+r.Labels[key])
	}
	for _, addr := range r.TaskAddrs {
		line("other address", addr.String())
	}
	return t.Flush()
}

// container is its name, or else an ID as short as Docker shows it.
func (r row) container() string {
	if r.Name != "" {
		return r.Name
	}
	return r.Owner()[:min(12, len(r.Owner()))]
}

// short is the last part of a task's ARN.
func short(arn string) string {
	if arn == "" {
		return "-"
	}
	return arn[strings.LastIndexByte(arn, '/')+1:]
}

func since(t time.Time) string {
	if t.IsZero() {
		return "" // AWS's plugin records no time
	}
	return t.Local().Format(time.DateTime)
}

func addrs(b *ecs.Binding) string {
	var text []string
	for _, p := range b.Addrs {
		text = append(text, p.Addr().String())
	}
	return strings.Join(text, ",")
}
