package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/ipam"
	"taskmeta/internal/pluginexec"
	"taskmeta/internal/port"
)

// A delegate is the IPAM plugin, which gives the addresses.
type delegate struct {
	name    string
	path    string           // of its program; "" for ecs-ipam, which is built in
	request *cniedge.Request // ours: its configuration is passed on unchanged
}

// findIPAM looks for the plugin in the directories of CNI_PATH. It does not look for
// ecs-ipam: starting a process takes longer than all else in a verb, so ecs-bridge has it
// built in.
func findIPAM(r *cniedge.Request, name string) (*delegate, error) {
	if name == ipam.Name {
		return &delegate{name: name, request: r}, nil
	}
	if !strings.ContainsRune(name, filepath.Separator) {
		for _, dir := range filepath.SplitList(r.Path) {
			path := filepath.Join(dir, name)
			if unix.Access(path, unix.X_OK) == nil {
				return &delegate{name, path, r}, nil
			}
		}
	}
	shown, err := json.Marshal(name)
	if err != nil {
		return nil, err
	}
	return nil, cniedge.BadKey("ipam.type", shown, "the name of a program in CNI_PATH, which is "+r.Path)
}

// add asks for addresses.
func (d *delegate) add(ctx context.Context) (port.Grant, error) {
	result, err := d.do(ctx, "ADD")
	if err != nil {
		return port.Grant{}, err
	}
	g, err := port.NewGrant(result)
	if err != nil {
		return port.Grant{}, fmt.Errorf("answer of IPAM plugin %s: %w", d.name, err)
	}
	return g, nil
}

// do serves a verb of the plugin; ADD alone has a result. An error that the plugin answered
// with is a [types.Error], code and all; one that it has not is none.
func (d *delegate) do(ctx context.Context, verb string) (result *current.Result, err error) {
	if d.path == "" {
		result, err = ipam.Plugin(version).Serve(ctx, verb, d.request)
	} else {
		result, err = d.run(ctx, verb)
	}
	if err != nil {
		return nil, fmt.Errorf("%s of IPAM plugin %s: %w", verb, d.name, err)
	}
	return result, nil
}

// run starts the plugin's program and waits for its end. Its log is ours.
func (d *delegate) run(ctx context.Context, verb string) (*current.Result, error) {
	cmd := exec.CommandContext(ctx, d.path)
	cmd.Env = d.request.Environ(verb)
	cmd.Stdin = bytes.NewReader(d.request.Config)
	cmd.Stderr = os.Stderr
	out, err := pluginexec.Run(ctx, cmd)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return nil, fmt.Errorf("it ended without an answer (%s): %s", exit, bytes.TrimSpace(out))
	case err != nil:
		return nil, err
	case verb != "ADD":
		return nil, nil
	}
	return parseResult(out, d.request.CNIVersion)
}

// parseResult reads an answer in that version of CNI.
func parseResult(out []byte, version string) (*current.Result, error) {
	answer, err := create.Create(version, out)
	if err != nil {
		return nil, fmt.Errorf("reading a result of CNI %s: %w", version, err)
	}
	result, err := current.NewResultFromResult(answer)
	if err != nil {
		return nil, fmt.Errorf("converting a result of CNI %s: %w", version, err)
	}
	return result, nil
}
