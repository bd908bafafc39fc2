package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"taskmeta/internal/attach"
	"taskmeta/internal/docker"
	"taskmeta/internal/netns"
)

// commandTime bounds a command that asks others to do something.
const commandTime = time.Minute

// client makes a client of the daemon that the flags name.
func (f *flags) client() (*docker.Client, error) {
	if err := f.checkDockerHost(); err != nil {
		return nil, err
	}
	return docker.NewClient(f.dockerHost)
}

// attacher makes the attacher that the flags describe.
func (f *flags) attacher(daemon *docker.Client, log *slog.Logger) (*attach.Attacher, error) {
	bridge := f.bridge
	if !f.hasBridge() {
		bridge = "" // the resolver has none of its own; the plugins' stays
	}
	ns, err := f.place()
	if err != nil {
		return nil, err
	}
	host, err := netns.Own()
	if err != nil {
		return nil, err
	}
	return attach.New(attach.Config{
		Docker:      daemon,
		Netns:       ns,
		Host:        host,
		PluginNetns: f.pluginNetns(),
		DB:          f.db,
		PluginPath:  filepath.SplitList(f.cniPath),
		Network:     f.network,
		NetDir:      f.netDir,
		Bridge:      bridge,
		Logger:      log,
	})
}

// pluginNetns is what the plugins are told of --netns: nothing where it names what they find
// themselves.
func (f *flags) pluginNetns() string {
	if f.netns == netns.PinPath(f.db) {
		return ""
	}
	return f.netns
}

func attachCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "attach CONTAINER",
		Short: "Give a running Docker container an address on the tasks' bridge",
		Long: `Attach gives a running container, or the one whose network it shares, an
interface ` + attach.IfName + ` on the tasks' bridge and prints its address. From then on
it can ask http://169.254.170.2/v2/metadata. Its Docker networks stay as they
are. CONTAINER is a name or an ID. One that is attached already stays as it is.`,
		Example: "  ecs-resolver attach web\n  docker exec web wget -qO- http://169.254.170.2/v2/metadata",
		Args:    usage(one("CONTAINER")),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAttacher(cmd, &f, func(ctx context.Context, at *attach.Attacher) error {
				done, err := at.Attach(ctx, args[0])
				if err != nil {
					return err
				}
				if done.Already {
					cmd.PrintErrf("%s is attached already\n", done.Container.Name)
				}
				for _, addr := range done.Binding.Addrs {
					fmt.Fprintln(cmd.OutOrStdout(), addr.Addr())
				}
				return nil
			})
		},
	}
	f.dataFlags(cmd.Flags())
	f.placeFlags(cmd.Flags())
	f.pluginFlags(cmd.Flags())
	return cmd
}

func detachCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "detach CONTAINER",
		Short: "Take back what attach gave a container",
		Long: `Detach removes the interface ` + attach.IfName + ` of a container and frees its address.
The container may have ended; one that is removed is named by its full ID.`,
		Example: "  ecs-resolver detach web",
		Args:    usage(one("CONTAINER")),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAttacher(cmd, &f, func(ctx context.Context, at *attach.Attacher) error {
				freed, err := at.Detach(ctx, args[0])
				switch {
				case err != nil:
					return err
				case freed != nil && len(freed.Addrs) == 0:
					fmt.Fprintf(cmd.OutOrStdout(), "%s was not attached; what was left of an attempt is removed\n", args[0])
				case freed == nil:
					fmt.Fprintf(cmd.OutOrStdout(), "nothing to do: %s is not attached; `ecs-resolver bindings` lists what is\n", args[0])
				default:
					fmt.Fprintf(cmd.OutOrStdout(), "%s is detached, %s is free\n", args[0], addrs(freed))
				}
				return nil
			})
		},
	}
	f.dataFlags(cmd.Flags())
	f.placeFlags(cmd.Flags())
	f.pluginFlags(cmd.Flags())
	return cmd
}

// withAttacher runs a command that needs an attacher.
func withAttacher(cmd *cobra.Command, f *flags, do func(context.Context, *attach.Attacher) error) error {
	daemon, err := f.client()
	if err != nil {
		return err
	}
	at, err := f.attacher(daemon, slog.Default())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), commandTime)
	defer cancel()
	return do(ctx, at)
}
