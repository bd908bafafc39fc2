package testnet

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// A Call is one call of a CNI plugin, as a runtime makes it.
type Call struct {
	Program   string // the plugin's path
	Verb      string
	Container string
	IfName    string // "" is eth0
	Netns     string
	Path      string   // CNI_PATH, "" is the plugin's folder
	Conf      string   // written to standard input
	Env       []string // further variables
}

// Command is the command that makes the call.
func (c Call) Command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Program)
	cmd.Stdin = strings.NewReader(c.Conf)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+c.Verb, "CNI_CONTAINERID="+c.Container, "CNI_IFNAME="+cmp.Or(c.IfName, "eth0"),
		"CNI_NETNS="+c.Netns, "CNI_PATH="+cmp.Or(c.Path, filepath.Dir(c.Program)))
	cmd.Env = append(cmd.Env, c.Env...)
	return cmd
}

// Run makes the call in a namespace, or in this process's own if that is nil. See [Answer].
func (c Call) Run(ctx context.Context, n *Namespace) (*current.Result, error) {
	result, err := Answer(n, c.Command(ctx))
	if err != nil {
		err = fmt.Errorf("%s of %s by %s: %w", c.Verb, c.Container, filepath.Base(c.Program), err)
	}
	return result, err
}

// Answer runs the command of a call and returns the plugin's result, nil if it has none.
// An error that the plugin reports is a *types.Error.
func Answer(n *Namespace, cmd *exec.Cmd) (*current.Result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var err error
	if n != nil {
		err = n.Run(cmd)
	} else {
		err = cmd.Run()
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		failure := &types.Error{}
		if err := json.Unmarshal(stdout.Bytes(), failure); err != nil {
			return nil, fmt.Errorf("not an error in JSON: %q, %w\n%s", stdout.Bytes(), err, stderr.Bytes())
		}
		return nil, failure
	}
	if err != nil || stdout.Len() == 0 {
		return nil, err
	}
	result := &current.Result{}
	return result, json.Unmarshal(stdout.Bytes(), result)
}

// Refused checks that err is a plugin's error with that code and text.
func Refused(t testing.TB, err error, code uint, text string) {
	t.Helper()
	var failure *types.Error
	if !errors.As(err, &failure) || failure.Code != code || !strings.Contains(failure.Error(), text) {
		t.Errorf("got %v\nwant code %d: %s", err, code, text)
	}
}
