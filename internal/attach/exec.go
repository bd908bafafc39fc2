package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"taskmeta/internal/pluginexec"
)

// programs runs plugins for libcni as its own executor does, but each is killed should this
// process die: whoever takes the lock next would else undo an ADD that still goes on.
type programs struct {
	version.PluginDecoder
	stderr io.Writer
}

// FindInPath is what libcni asks for the path of a plugin.
func (p *programs) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin runs a plugin and returns what it answers. An error that the plugin reports is
// a [types.Error]; that of one that ended without an answer has no code.
func (p *programs) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = environ
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), io.MultiWriter(p.stderr, &stderr)
	out, err := pluginexec.Run(ctx, cmd)
	switch {
	case err == nil || errors.As(err, new(*types.Error)):
		return out, err
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return nil, fmt.Errorf("%s ended without an answer (%w): %s", path, err, bytes.TrimSpace(stderr.Bytes()))
}
