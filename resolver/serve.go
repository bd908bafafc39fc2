package main

import (
	"cmp"
	"context"
	"crypto/rand"
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
	"taskmeta/internal/ecs"
	"taskmeta/internal/endpoint"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/metadata"
	"taskmeta/internal/netns"
)

// The values of --witness.
const (
	witnessRequired = "require"
	witnessOff      = "off"
)

// settings are the flags of serve.
type settings struct {
	flags
	rate         float64
	burst        int
	allowHosts   []string
	zone         string
	instanceTags map[string]string
	witness      string
	autoAttach   bool
	logLevel     slog.Level
	logFormat    string
}

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
	s.dataFlags(f)
	s.placeFlags(f)
	s.endpointFlags(f)
	s.pluginFlags(f)
	f.Float64Var(&s.rate, "rate", 40, "`N` requests a second of a task, 0: any")
	f.IntVar(&s.burst, "burst", 60, "`N` requests of a task at once")
	f.StringSliceVar(&s.allowHosts, "allow-host", nil, "further `NAME` in the Host header; may be repeated")
	f.StringVar(&s.zone, "availability-zone", "", "AvailabilityZone `NAME` in the answers")
	f.StringToStringVar(&s.instanceTags, "instance-tag", nil, "ContainerInstanceTags `KEY=VALUE`; may be repeated")
	f.Lookup("instance-tag").DefValue = ""
	f.BoolVar(&s.autoAttach, "auto-attach", false, "attach each container that has a task's label")
	f.StringVar(&s.witness, "witness", witnessRequired, "witness `MODE`: require or off")
	f.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn, error")
	f.Lookup("log-level").DefValue = "info"
	f.StringVar(&s.logFormat, "log-format", "auto", "`FORMAT`: text, json or auto")
	return cmd
}

// check returns the guard's mode, or what is wrong with the flags.
func (s settings) check() (guard.Mode, error) {
	if s.rate < 0 || s.burst < 0 || s.rate > 0 && s.burst == 0 {
		return "", usageError{fmt.Errorf("--rate %v with --burst %d: expected a rate and a burst above 0, or --rate 0 for no limit", s.rate, s.burst)}
	}
	if s.witness != witnessRequired && s.witness != witnessOff {
		return "", usageError{fmt.Errorf("--witness %q: expected %s or %s", s.witness, witnessRequired, witnessOff)}
	}
	mode, err := s.mode()
	if err != nil {
		return "", err
	}
	return mode, s.checkDockerHost()
}

// serve runs the resolver until ctx ends, and then lets what is under way finish.
func serve(ctx context.Context, s settings) error {
	r, err := s.open()
	if err != nil {
		return err
	}
	defer r.sockets.close()
	foreign, err := isForeign(r.dockerHost)
	if err != nil {
		return err
	}
	if foreign {
		r.log.Warn("the Docker daemon's socket is another user's: CAP_DAC_OVERRIDE is kept to open it", "host", r.dockerHost)
	}
	if err := keepOnly(capabilities(s, foreign)); err != nil {
		return err
	}
	for _, l := range r.sockets.api {
		r.log.Info("serving tasks", "addr", l.Addr().String(), "bridge", s.bridge, "netns", r.netns, "db", s.db)
	}
	return r.run(ctx)
}

// parts are what a resolver consists of. Without a bridge there is no keeper, and without
// --auto-attach no attacher.
type parts struct {
	log        *slog.Logger
	instance   string // by which `status` knows the answer of this process
	bindings   *bindingdb.Reader
	index      *docker.Index
	dockerHost string // where the daemon is
	requests   *admin.Requests
	api        *metadata.Server
	sockets    *sockets
	netns      string // of the endpoint, "host" for the host's
	keeper     *endpoint.Keeper
	attacher   *attach.Attacher
}

// open makes the parts, the sockets and what stands on the host last. It is all that needs
// the capabilities that the resolver gives up.
func (s settings) open() (_ *parts, err error) {
	mode, err := s.check()
	if err != nil {
		return nil, err
	}
	r := &parts{requests: admin.NewRequests(), instance: rand.Text()}
	if r.log, err = newLogger(s.logFormat, s.logLevel); err != nil {
		return nil, err
	}
	if r.bindings, err = bindingdb.NewReader(s.db, bindingdb.Options{}); err != nil {
		return nil, err
	}
	client, err := s.client()
	if err != nil {
		return nil, err
	}
	r.dockerHost = client.Host()
	r.index = docker.New(docker.Config{Client: client, Addresses: addressesOf, Counters: func(pid int) (map[string]ecs.Counters, error) { return link.AllCounters(netns.Path(pid)) }, CanChangeHostNetwork: guard.CanChangeHostNetwork, Logger: r.log})
	conns, err := maxConns()
	if err != nil {
		return nil, err
	}
	r.api = metadata.New(metadata.Config{
		MaxAllConns:      conns,
		BindingOf:        r.bindings.Binding,
		TaskOf:           r.index.Task,
		Stats:            r.index.Stats,
		Witness:          newWitness(s.witness),
		Observe:          r.requests.Observe,
		Rate:             s.rate,
		Burst:            s.burst,
		AllowHost:        s.allowHosts,
		Instance:         r.instance,
		AvailabilityZone: s.zone,
		InstanceTags:     s.instanceTags,
		Logger:           r.log,
	})
	if err := s.openEndpoint(r, mode); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.sockets.close()
		}
	}()
	if s.autoAttach {
		if r.attacher, err = s.attacher(client, r.log); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// openEndpoint opens the sockets, and makes what they stand on.
func (s settings) openEndpoint(r *parts, mode guard.Mode) error {
	own, err := netns.Own()
	if err != nil {
		return err
	}
	pin, err := s.pin()
	if err != nil {
		return err
	}
	r.netns = cmp.Or(pin, onHost)
	at := listening{tasks: own, operators: own, listen: s.listen, admin: s.admin, log: r.log}
	if pin != "" {
		if at.tasks, err = netns.Pin(pin); err != nil {
			return fmt.Errorf("%w: it takes CAP_SYS_ADMIN; --netns %s does without", err, onHost)
		}
	}
	if s.hasBridge() {
		at.bridge = s.bridge
		r.keeper = endpoint.New(endpoint.Config{
			Netns: at.tasks, Host: own, Pin: pin, Bridge: s.bridge, Guard: mode, DB: s.db, Bindings: r.allBindings, CloseEnded: r.api.CloseEnded, Logger: r.log,
		})
		if err := r.keeper.EnsureBridge(); err != nil {
			return err
		}
	}
	if r.sockets, err = at.open(); err != nil {
		return err
	}
	if _, ok := r.sockets.admin.(*lateListener); ok {
		r.log.Warn("a client's connection has the port of --admin: listening there as soon as it is free", "addr", s.admin)
	}
	if r.keeper == nil {
		if err := endpoint.Withdraw(own, s.db); err != nil {
			r.log.Warn("what a resolver with a bridge left on this host cannot be removed", "err", err)
		}
		return nil
	}
	if err := r.keeper.Serve(r.sockets.api); err != nil {
		r.sockets.close()
		return err
	}
	return nil
}

func (r *parts) allBindings() ([]*ecs.Binding, error) {
	snapshot, err := r.bindings.Snapshot()
	if err != nil {
		return nil, err
	}
	return snapshot.All(), nil
}

// run serves until ctx ends. What has been accepted by then is answered, from an index that
// is current until the last answer.
func (r *parts) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if r.attacher != nil {
		g.Go(func() error { return r.attacher.Run(ctx, r.index) })
	}
	answering, answered := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return r.index.Run(answering) })
	if r.keeper != nil {
		g.Go(func() error { return r.keeper.Run(ctx) })
	}
	operators, tasks := r.newAdmin().HTTPServer(), r.api.HTTPServer()
	var d drain
	d.watch(operators)
	d.watch(tasks)
	serving := func(server *http.Server, l net.Listener) {
		d.accepting.Add(1)
		g.Go(func() error {
			defer d.accepting.Done()
			return serveOn(server, l)
		})
	}
	serving(operators, steadyListener{r.sockets.admin, ctx, r.log})
	for _, l := range r.sockets.api {
		serving(tasks, metadata.Listener(steadyListener{l, ctx, r.log}))
	}
	g.Go(func() error {
		defer answered()
		<-ctx.Done()
		notify(r.log, daemon.SdNotifyStopping)
		r.log.Info("ending", "cause", context.Cause(ctx))
		r.sockets.close()
		return d.wait(operators, tasks)
	})
	g.Go(func() error { return watchdog(ctx) })
	notify(r.log, daemon.SdNotifyReady)
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
