package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"taskmeta/internal/attach"
)

// commandTime bounds a command that asks others to do something.
const commandTime = time.Minute

// An attachment is the flags that say how containers are attached.
type attachment struct {
	db         string
	dockerHost string
	bridge     string
	network    string
	netDir     string
	cniPath    string
}

// placeFlags say what is worked on. `serve` has flags of these names as well.
func (a *attachment) placeFlags(f *pflag.FlagSet) {
	f.StringVar(&a.db, "db", defaultDB(), dbUsage)
	f.StringVar(&a.dockerHost, "docker-host", "", dockerHostUsage)
}

// pluginFlags say which plugins are run, and with which configuration.
func (a *attachment) pluginFlags(f *pflag.FlagSet) {
	f.StringVar(&a.network, "network", "", "`NAME` network for the attached (one that is built in)")
	f.StringVar(&a.netDir, "net-dir", "/etc/cni/net.d", "`FOLDER` where --network is configured")
	f.StringVar(&a.cniPath, "cni-path", defaultPluginPath(), "`FOLDERS` with the plugins (its own:/opt/cni/bin:...)")
	f.Lookup("cni-path").DefValue = "" // too long to be shown
}

// defaultPluginPath has the program's own folder first, so that programs of the same
// names, such as AWS's plugins, do not take the place of those that came with it.
func defaultPluginPath() string {
	path := "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni"
	if self, err := os.Executable(); err == nil {
		path = filepath.Dir(self) + ":" + path
	}
	return path
}

// open makes the attacher that the flags describe.
func (a *attachment) open(log *slog.Logger) (*attach.Attacher, error) {
	if err := checkDockerHost(a.dockerHost); err != nil {
		return nil, err
	}
	bridge := a.bridge
	if bridge == "none" {
		bridge = "" // the resolver has none of its own; the plugins' stays
	}
	return attach.New(attach.Config{
		DockerHost: a.dockerHost,
		DB:         a.db,
		PluginPath: filepath.SplitList(a.cniPath),
		Network:    a.network,
		NetDir:     a.netDir,
		Bridge:     bridge,
		Logger:     log,
	})
}

// checkDockerHost checks the URL of the daemon that the flag, or else the environment, names.
func checkDockerHost(url string) error {
	from := "--docker-host"
	if url == "" {
		from, url = client.EnvOverrideHost, os.Getenv(client.EnvOverrideHost)
	}
	if url == "" {
		return nil
	}
	if _, err := client.ParseHostURL(url); err != nil {
		return usageError{fmt.Errorf("%s %q: expected a URL such as unix:///var/run/docker.sock", from, url)}
	}
	return nil
}

func attachCommand() *cobra.Command {
	var a attachment
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
			return withAttacher(cmd, &a, func(ctx context.Context, at *attach.Attacher) error {
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
	a.placeFlags(cmd.Flags())
	a.bridgeFlag(cmd.Flags())
	a.pluginFlags(cmd.Flags())
	return cmd
}

func detachCommand() *cobra.Command {
	var a attachment
	cmd := &cobra.Command{
		Use:   "detach CONTAINER",
		Short: "Take back what attach gave a container",
		Long: `Detach removes the interface ` + attach.IfName + ` of a container and frees its address.
The container may have ended; one that is removed is named by its full ID.`,
		Example: "  ecs-resolver detach web",
		Args:    usage(one("CONTAINER")),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAttacher(cmd, &a, func(ctx context.Context, at *attach.Attacher) error {
				freed, err := at.Detach(ctx, args[0])
				switch {
				case err != nil:
					return err
				case freed == nil:
					fmt.Fprintf(cmd.OutOrStdout(), "nothing to do: %s is not attached; `ecs-resolver bindings` lists what is\n", args[0])
				default:
					fmt.Fprintf(cmd.OutOrStdout(), "%s is detached, %s is free\n", args[0], addrs(freed))
				}
				return nil
			})
		},
	}
	a.placeFlags(cmd.Flags())
	a.bridgeFlag(cmd.Flags())
	a.pluginFlags(cmd.Flags())
	return cmd
}

func (a *attachment) bridgeFlag(f *pflag.FlagSet) {
	f.StringVar(&a.bridge, "bridge", defaultBridge, "`NAME` as serve has it")
}

// withAttacher runs a command that needs an attacher.
func withAttacher(cmd *cobra.Command, a *attachment, do func(context.Context, *attach.Attacher) error) error {
	at, err := a.open(slog.Default())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), commandTime)
	defer cancel()
	return do(ctx, at)
}
