package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

func addressesOf(pid int) ([]netip.Addr, error) {
	found, err := link.Addresses(netns.Path(pid))
	addrs := make([]netip.Addr, len(found))
	for i, a := range found {
		addrs[i] = a.Addr()
	}
	return addrs, err
}

// netnsCommand is for systemd's units: the service has mounts of its own, and its socket is
// opened before it.
func netnsCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:    "netns",
		Short:  "Make the endpoint's network namespace and print where it is",
		Hidden: true,
		Long: `Netns makes the network namespace that serve needs, before it, and prints where
it is mounted. With --netns host that is the host's own, so that systemd's
socket unit finds the endpoint at one path. One that is there stays.`,
		Example: "  ecs-resolver netns",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := f.pin()
			if err != nil {
				return err
			}
			var ns *netns.NS
			if path != "" {
				ns, err = netns.Pin(path)
			} else if ns, err = netns.Own(); err == nil {
				path = netns.PinPath(f.db)
				err = ns.PinAt(path)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
			return errors.Join(err, ns.Close())
		},
	}
	f.dataFlags(cmd.Flags())
	f.placeFlags(cmd.Flags())
	return cmd
}

// onHosts reports whether a network namespace is that of the host's interfaces, which is the
// process's own.
func onHosts(ns *netns.NS) bool {
	own, err := netns.Own()
	return err == nil && ns.ID() == own.ID()
}
