// Package cniedge is what both plugins share at the edge to a container runtime: the
// environment and standard input of a verb, the codes of errors, and the answer on
// standard output, where a CNI plugin writes its answer and nothing else.
package cniedge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"taskmeta/internal/bootclock"
)

// VerbTimeout bounds a verb as a whole. Nothing in a verb takes a second by itself: what
// takes this long will not end, and runtimes give up on a plugin after a minute or more.
const VerbTimeout = 30 * time.Second

// Versions are those of the CNI specification that the plugins speak.
var Versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// A Plugin is a name and a function for each verb. VERSION needs none. The context of a
// verb ends after [VerbTimeout]. Signals end the process where it stands: a plugin must
// survive SIGKILL anyway, and handling the others costs every ADD two more threads.
type Plugin struct {
	Name    string
	Version string
	// Help is printed for --help, and when the program is started with nothing at all.
	Help string

	// Add returns the result in the newest version; Main converts it to the one asked for.
	Add    func(context.Context, *Request) (*current.Result, error)
	Del    func(context.Context, *Request) error
	Check  func(context.Context, *Request) error
	GC     func(context.Context, *Request) error
	Status func(context.Context, *Request) error
}

// Main serves the verb that the environment names and exits: with 0, or with 1 after an
// error in JSON on standard output. A panic becomes such an error as well.
//
// This is what cni/pkg/skel does. We do not use it because it compiles regular expressions at
// each start of a plugin, needed or not. An ecs-ipam that links it takes 8% more processor time
// to answer VERSION (400 starts of each by turns); GODEBUG=inittrace=1 shows 0.25 to 0.5 ms for
// cni/pkg/utils alone, and 0.2 ms for the tables of unicode.
func Main(p Plugin) {
	verb := os.Getenv("CNI_COMMAND")
	if verb == "" {
		if len(os.Args) > 1 {
			os.Exit(p.word(os.Args[1], os.Stdout, os.Stderr))
		}
		fmt.Fprintln(os.Stderr, p.Help)
		return
	}
	slog.SetDefault(p.logger())
	if err := p.main(verb, os.Stdin, os.Stdout); err != nil {
		var failure *types.Error
		if !errors.As(err, &failure) {
			failure = types.NewError(code(err), err.Error(), "")
		}
		if err := failure.Print(); err != nil {
			slog.Error("writing the error to standard output", "err", err, "code", failure.Code, "msg", failure.Error())
		}
		os.Exit(1)
	}
}

// main serves a verb: what it needs of the environment is looked at before anything is read.
func (p Plugin) main(verb string, stdin io.Reader, stdout io.Writer) error {
	start := bootclock.Now()
	if verb == "VERSION" {
		return version.PluginSupports(Versions...).Encode(stdout)
	}
	needs, err := needsOf(verb)
	if err != nil {
		return err
	}
	r, err := fromEnvironment(needs, start)
	if err != nil {
		return err
	}
	if r.Config, err = io.ReadAll(stdin); err != nil {
		return fmt.Errorf("reading the network configuration: %w", err)
	}
	if err = r.readConfig(needs); err == nil && verb == "ADD" {
		err = r.checkNetns()
	}
	if err != nil {
		return Error(r.operation(verb), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), VerbTimeout)
	defer cancel()
	result, err := p.Serve(ctx, verb, r)
	if err != nil || result == nil {
		return err
	}
	converted, err := result.GetAsVersion(r.CNIVersion)
	if err != nil {
		return Error(r.operation(verb), err)
	}
	return converted.PrintTo(stdout)
}

// word answers a person who runs the program without a runtime, and returns the exit code.
func (p Plugin) word(word string, stdout, stderr io.Writer) int {
	switch word {
	case "-h", "--help", "help":
		fmt.Fprintln(stdout, p.Help)
		return 0
	case "version":
		fmt.Fprintf(stdout, "%s %s, CNI %s to %s\n", p.Name, p.Version, Versions[0], Versions[len(Versions)-1])
		return 0
	case "-version", "--version", "-capabilities", "--capabilities":
		if err := p.forAgent(strings.TrimLeft(word, "-"), stdout); err != nil {
			fmt.Fprintf(stderr, "%s: %s\n", p.Name, err)
			return 1
		}
		return 0
	}
	fmt.Fprintf(stderr, "%s: unknown word %q: expected --help or version; verbs come in CNI_COMMAND\n", p.Name, word)
	return 2
}

// forAgent answers what the ECS agent asks of its plugins before it uses them, as AWS's do.
func (p Plugin) forAgent(word string, stdout io.Writer) error {
	var answer any = struct {
		Capabilities []string `json:"capabilities"`
	}{[]string{"awsvpc-network-mode"}}
	if word == "version" {
		version, dirty := strings.CutSuffix(p.Version, "-dirty")
		hash := version // git describe has the commit last, after "-g" if there is a tag
		if i := strings.LastIndex(version, "-g"); i >= 0 {
			hash = version[i+2:]
		}
		answer = struct {
			Version string `json:"version"`
			Dirty   bool   `json:"dirty"`
			Hash    string `json:"gitShortHash"`
		}{version, dirty, hash}
	}
	return json.NewEncoder(stdout).Encode(answer)
}

// The environment in which AWS's plugins are told where to log, and from which level on.
const (
	envLogFile  = "ECS_CNI_LOG_FILE"
	envLogLevel = "ECS_CNI_LOGLEVEL"
)

// logger writes to the file that the environment names, else to standard error. A verb
// must not fail for its log, so what cannot be used is only told.
func (p Plugin) logger() *slog.Logger {
	var out io.Writer = os.Stderr
	var problems []any
	if path := os.Getenv(envLogFile); path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err == nil {
			out = f
		} else {
			problems = append(problems, envLogFile, err)
		}
	}
	level := slog.LevelInfo
	switch text := strings.ToLower(os.Getenv(envLogLevel)); text {
	case "":
	case "trace":
		level = slog.LevelDebug
	case "crit", "critical", "fatal", "off", "none":
		level = slog.LevelError + 1
	default:
		if err := level.UnmarshalText([]byte(text)); err != nil {
			problems = append(problems, envLogLevel, text)
		}
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})).With("plugin", p.Name)
	if problems != nil {
		log.Warn("logging otherwise than asked for", problems...)
	}
	return log
}

// Serve serves a verb, as the program of the plugin does, for a plugin of the same process
// that delegates to this one: the request is that plugin's own. ADD alone has a result, in
// the newest version. An error is a [types.Error], code and all.
func (p Plugin) Serve(ctx context.Context, verb string, r *Request) (*current.Result, error) {
	result, err := p.protected(ctx, verb, r)
	if err != nil {
		return nil, Error(r.operation(verb), err)
	}
	return result, nil
}

// protected serves a verb and makes a panic an error, so that the runtime gets JSON.
func (p Plugin) protected(ctx context.Context, verb string, r *Request) (result *current.Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			slog.Error("panic", "value", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic, which is a bug in the plugin: %v", v)
		}
	}()
	switch verb {
	case "ADD":
		return p.Add(ctx, r)
	case "DEL":
		return nil, p.Del(ctx, r)
	case "CHECK":
		return nil, p.Check(ctx, r)
	case "GC":
		return nil, p.GC(ctx, r)
	case "STATUS":
		return nil, unavailable(p.Status(ctx, r))
	}
	panic("no such verb: " + verb)
}

// unavailable makes a failure of STATUS mean "cannot serve an ADD", unless it bears a code
// that says more: one of the two that the specification has for STATUS, or that of input
// that cannot be used.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	switch code(err) {
	case types.ErrPluginNotAvailable, types.ErrLimitedConnectivity,
		types.ErrInvalidEnvironmentVariables, types.ErrDecodingFailure, types.ErrInvalidNetworkConfig:
		return err
	}
	return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
}
