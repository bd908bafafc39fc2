package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"taskmeta/internal/admin"
	"taskmeta/internal/attach"
	"taskmeta/internal/bindingdb"
	"taskmeta/internal/docker"
	"taskmeta/internal/endpoint"
	"taskmeta/internal/guard"
	"taskmeta/internal/metadata"
)

// The values of --witness.
const (
	witnessRequired = "require"
	witnessOff      = "off"
)

// settings are the flags of serve.
type settings struct {
	db           string
	dockerHost   string
	listen       []string
	bridge       string
	guard        string
	admin        string
	rate         float64
	burst        int
	allowHosts   []string
	zone         string
	instanceTags map[string]string
	witness      string
	autoAttach   bool
	plugins      attachment
	logLevel     slog.Level
	logFormat    string
}

// Flags that several commands have. The usage of a flag is the word for its value and,
// short enough for a line of the help, what it is.
const (
	defaultAdmin    = "127.0.0.1:51680"
	defaultBridge   = "ecs-bridge"
	defaultListen   = "169.254.170.2:80"
	dbUsage         = "`FILE` the bindings file"
	dockerHostUsage = "`URL` the daemon (DOCKER_HOST, else its usual socket)"
)

func serveCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:     "serve",
		Short:   "Serve the tasks of this host (the default command)",
		Example: "  ecs-resolver serve --auto-attach",
		Args:    usage(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringVar(&s.db, "db", defaultDB(), dbUsage)
	f.StringVar(&s.dockerHost, "docker-host", "", dockerHostUsage)
	f.StringArrayVar(&s.listen, "listen", nil, "`ADDR:PORT` where tasks ask, or fd:N (169.254.170.2:80)")
	f.StringVar(&s.bridge, "bridge", defaultBridge, "`NAME` the tasks' bridge; none: none is made")
	f.StringVar(&s.guard, "guard", string(guard.Strict), "`MODE` what tasks reach: strict, source, off")
	f.StringVar(&s.admin, "admin", defaultAdmin, "`ADDR:PORT` status page, or unix:PATH")
	f.Float64Var(&s.rate, "rate", 40, "`N` requests a second of a task, 0: any number")
	f.IntVar(&s.burst, "burst", 60, "`N` requests of a task at once")
	f.StringSliceVar(&s.allowHosts, "allow-host", nil, "`NAME` a further Host header; may be repeated")
	f.StringVar(&s.zone, "availability-zone", "", "`NAME` AvailabilityZone in the answers")
	f.StringToStringVar(&s.instanceTags, "instance-tag", nil, "`KEY=VALUE` ContainerInstanceTags; may be repeated")
	f.BoolVar(&s.autoAttach, "auto-attach", false, "attach each container that has a task's label")
	s.plugins.pluginFlags(f)
	f.StringVar(&s.witness, "witness", witnessRequired, "`MODE` look for the client's socket: require, off")
	f.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "`LEVEL` debug, info, warn, error")
	f.Lookup("log-level").DefValue = "info"
	f.StringVar(&s.logFormat, "log-format", "auto", "`FORMAT` text, json, auto: text on a terminal")
	return cmd
}

func defaultDB() string {
	if path := os.Getenv("IPAM_DB_PATH"); path != "" {
		return path
	}
	return bindingdb.DefaultPath
}

// check returns the guard's mode, or what is wrong with the flags.
func (s settings) check() (guard.Mode, error) {
	if s.rate < 0 || s.burst < 0 || s.rate > 0 && s.burst == 0 {
		return "", usageError{fmt.Errorf("--rate %v with --burst %d: expected a rate and a burst above 0, or --rate 0 for no limit", s.rate, s.burst)}
	}
	if s.witness != witnessRequired && s.witness != witnessOff {
		return "", usageError{fmt.Errorf("--witness %q: expected %s or %s", s.witness, witnessRequired, witnessOff)}
	}
	mode, err := guard.ParseMode(s.guard)
	if err != nil {
		return "", usageError{fmt.Errorf("--%w", err)}
	}
	return mode, checkDockerHost(s.dockerHost)
}

// serve runs the resolver until ctx ends, and then lets what is under way finish.
func serve(ctx context.Context, s settings) error {
	mode, err := s.check()
	if err != nil {
		return err
	}
	log, err := newLogger(s.logFormat, s.logLevel)
	if err != nil {
		return err
	}
	bindings, err := bindingdb.NewReader(s.db, bindingdb.Options{})
	if err != nil {
		return err
	}
	index, err := docker.New(docker.Config{Host: s.dockerHost, Addresses: addressesOf, Counters: countersOf, Uncontained: uncontained, Logger: log})
	if err != nil {
		return err
	}
	witnessed, err := newWitness(s.witness)
	if err != nil {
		return err
	}
	requests := admin.NewRequests()
	api := metadata.New(metadata.Config{
		BindingOf:        bindings.Binding,
		TaskOf:           index.Task,
		Stats:            index.Stats,
		Witness:          witnessed,
		Observe:          requests.Observe,
		Rate:             s.rate,
		Burst:            s.burst,
		AllowHost:        s.allowHosts,
		AvailabilityZone: s.zone,
		InstanceTags:     s.instanceTags,
		Logger:           log,
	})
	sockets, err := openSockets(s.listen, s.admin, s.bridge != "none")
	if err != nil {
		return err
	}
	defer sockets.close()
	if _, ok := sockets.admin.(*lateListener); ok {
		log.Warn("a client's connection has the port of --admin: listening there as soon as it is free", "addr", s.admin)
	}

	var end *endpoint.Keeper
	if s.bridge != "none" {
		end = &endpoint.Keeper{Bridge: s.bridge, Guard: mode, Sockets: sockets.api, CloseEnded: api.CloseEnded, Bindings: bindings, Logger: log}
		if err := end.Ensure(); err != nil {
			return err
		}
	}
	var attacher *attach.Attacher
	if s.autoAttach {
		s.plugins.db, s.plugins.dockerHost, s.plugins.bridge = s.db, s.dockerHost, s.bridge
		if attacher, err = s.plugins.open(log); err != nil {
			return err
		}
	}
	if err := keepOnly(capabilities(s)); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if attacher != nil {
		g.Go(func() error { return attacher.Run(ctx) })
	}
	answering, answered := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return index.Run(answering) })
	if end != nil {
		g.Go(func() error { return end.Run(ctx) })
	}
	operators := newAdmin(bindings, index, end, requests)
	servers := []*http.Server{operators.HTTPServer(), api.HTTPServer()}
	var d drain
	serving := func(server *http.Server, l net.Listener) {
		d.accepting.Add(1)
		g.Go(func() error {
			defer d.accepting.Done()
			return serveOn(server, l)
		})
	}
	for _, server := range servers {
		d.watch(server)
	}
	serving(servers[0], sockets.admin)
	for _, l := range sockets.api {
		serving(servers[1], metadata.Listener(l))
	}
	g.Go(func() error {
		defer answered()
		<-ctx.Done()
		notify(log, daemon.SdNotifyStopping)
		log.Info("ending", "cause", context.Cause(ctx))
		sockets.close()
		return d.wait(servers)
	})
	g.Go(func() error { return watchdog(ctx) })
	for _, l := range sockets.api {
		log.Info("serving tasks", "addr", l.Addr().String(), "bridge", s.bridge, "db", s.db)
	}
	notify(log, daemon.SdNotifyReady)
	return g.Wait()
}

// newLogger logs to standard error.
func newLogger(format string, level slog.Level) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "auto":
		if st, err := os.Stderr.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
			return slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
		}
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
	}
	return nil, usageError{fmt.Errorf("--log-format %q: expected auto, text or json", format)}
}
