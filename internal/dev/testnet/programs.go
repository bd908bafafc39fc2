package testnet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The programs of the project that are built otherwise than others, by import path.
const (
	resolver  = "taskmeta/resolver"
	ecsBridge = "taskmeta/plugins/ecs-bridge"
)

// Build builds Go programs into a directory as `make build` does: static, the resolver
// under the name of ecs-resolver, and ecs-ipam, which is among them then, before the
// ecs-bridge that has it built in. Packages are import paths.
func Build(dir string, packages ...string) error {
	others := slices.DeleteFunc(slices.Clone(packages), func(p string) bool { return p == ecsBridge })
	if err := build(dir, "-s -w", others...); err != nil {
		return err
	}
	if slices.Contains(packages, resolver) {
		if err := os.Rename(filepath.Join(dir, "resolver"), filepath.Join(dir, "ecs-resolver")); err != nil {
			return err
		}
	}
	if len(others) == len(packages) {
		return nil
	}
	id, err := exec.Command("go", "tool", "buildid", filepath.Join(dir, "ecs-ipam")).Output()
	if err != nil {
		return fmt.Errorf("reading the build ID of ecs-ipam: %w", err)
	}
	return build(dir, "-s -w -X main.builtIn="+strings.TrimSpace(string(id)), ecsBridge)
}

func build(dir, ldflags string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", ldflags, "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w: %s", err, out)
	}
	return nil
}

// Programs runs tests while the programs that they start are there.
type Programs struct {
	*testing.M
	Packages []string
	Dir      *string // where they are, for the tests to know
}

// Run builds the programs, runs the tests, and returns their exit code.
func (p Programs) Run() int {
	code, err := p.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func (p Programs) run() (code int, err error) {
	if *p.Dir, err = os.MkdirTemp("", "taskmeta-bin-"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(*p.Dir)) }()
	if err := os.Chmod(*p.Dir, 0o755); err != nil { // a test may start them as somebody else
		return 0, err
	}
	if err := Build(*p.Dir, p.Packages...); err != nil {
		return 0, err
	}
	return p.M.Run(), nil
}
