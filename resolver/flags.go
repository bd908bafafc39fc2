package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/client"
	"github.com/spf13/pflag"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/guard"
	"taskmeta/internal/netns"
)

// Defaults of flags.
const (
	defaultAdmin  = "127.0.0.1:51680"
	defaultListen = "169.254.170.2:80"
	noBridge      = "none" // the value of --bridge for a resolver without one
	onHost        = "host" // the value of --netns for a bridge among the host's interfaces
)

// flags are those that several commands have. A command registers the groups that it needs,
// so that a flag is the same wherever it stands.
type flags struct {
	// of dataFlags
	db         string
	dockerHost string
	// of placeFlags
	bridge string
	netns  string
	// of endpointFlags
	guard  string
	listen []string
	admin  string
	// of pluginFlags
	network string
	netDir  string
	cniPath string
}

// The usage of a flag is short enough for a line of the help, with the word for its value
// between backquotes.

// dataFlags say what is worked on.
func (f *flags) dataFlags(set *pflag.FlagSet) {
	set.StringVar(&f.db, "db", defaultDB(), "bindings `FILE`")
	set.StringVar(&f.dockerHost, "docker-host", "", "daemon's `URL` (default DOCKER_HOST or its socket)")
}

// placeFlags say which bridge the tasks are on, and where it stands.
func (f *flags) placeFlags(set *pflag.FlagSet) {
	f.netnsFlag(set)
	set.StringVar(&f.bridge, "bridge", guard.DefaultBridge, "tasks' bridge `NAME`, or none")
}

func (f *flags) netnsFlag(set *pflag.FlagSet) {
	set.StringVar(&f.netns, "netns", "", "endpoint's netns `PATH` or host (default beside --db)")
}

// endpointFlags say where tasks and operators ask.
func (f *flags) endpointFlags(set *pflag.FlagSet) {
	set.StringVar(&f.guard, "guard", string(guard.Strict), "guard `MODE`: strict, source, off")
	set.StringArrayVar(&f.listen, "listen", nil, "tasks' `ADDR:PORT` or fd:N (default 169.254.170.2:80)")
	set.StringVar(&f.admin, "admin", defaultAdmin, "page at `ADDR|unix:PATH`")
}

// pluginFlags say which plugins are run, and with which configuration.
func (f *flags) pluginFlags(set *pflag.FlagSet) {
	set.StringVar(&f.network, "network", "", "network `NAME` for the attached (default built in)")
	set.StringVar(&f.netDir, "net-dir", "/etc/cni/net.d", "`FOLDER` of the --network")
	set.StringVar(&f.cniPath, "cni-path", defaultPluginPath(), "plugin `FOLDERS` (default its own:/opt/cni/bin:...)")
	set.Lookup("cni-path").DefValue = "" // too long to be shown
}

func defaultDB() string {
	if path := os.Getenv("IPAM_DB_PATH"); path != "" {
		return path
	}
	return bindingdb.DefaultPath
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

// hasBridge reports whether the resolver has a bridge of its own.
func (f *flags) hasBridge() bool { return f.bridge != noBridge }

// pin is where the endpoint's own network namespace is pinned, "" where it stands on the
// host.
func (f *flags) pin() (string, error) {
	switch {
	case f.netns != "" && f.netns != onHost && !filepath.IsAbs(f.netns):
		return "", usageError{fmt.Errorf("--netns %q: expected %s, or the absolute path of a network namespace's mount, such as %s", f.netns, onHost, netns.PinPath(bindingdb.DefaultPath))}
	case f.netns == onHost || !f.hasBridge():
		return "", nil
	case f.netns == "":
		return netns.PinPath(f.db), nil
	}
	return f.netns, nil
}

// place opens the network namespace that the endpoint stands in: the pinned one if it is
// there, and else the host's, to which the plugins keep as well.
func (f *flags) place() (*netns.NS, error) {
	path, err := f.pin()
	if err != nil {
		return nil, err
	}
	if path != "" {
		if ns, err := netns.Pinned(path); !errors.Is(err, fs.ErrNotExist) {
			return ns, err
		}
	}
	return netns.Own()
}

// mode reads --guard.
func (f *flags) mode() (guard.Mode, error) {
	mode, err := guard.ParseMode(f.guard)
	if err != nil {
		return "", usageError{fmt.Errorf("--%w", err)}
	}
	return mode, nil
}

// addresses reads --listen where an open socket is of no use.
func (f *flags) addresses() (all []netip.AddrPort, err error) {
	listen := f.listen
	if len(listen) == 0 {
		listen = []string{defaultListen}
	}
	for _, text := range listen {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, usageError{fmt.Errorf("--listen %q: expected an address and a port, such as %s", text, defaultListen)}
		}
		all = append(all, at)
	}
	return all, nil
}

// checkAdmin checks where a resolver is asked.
func (f *flags) checkAdmin() error {
	if strings.HasPrefix(f.admin, "unix:") {
		return nil
	}
	if _, err := netip.ParseAddrPort(f.admin); err != nil {
		return usageError{fmt.Errorf("--admin %q: expected a loopback address and a port, such as %s, or unix:PATH", f.admin, defaultAdmin)}
	}
	return nil
}

// checkDockerHost checks the URL of the daemon that the flag, or else the environment, names.
func (f *flags) checkDockerHost() error {
	from, url := "--docker-host", f.dockerHost
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
