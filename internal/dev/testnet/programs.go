package testnet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// Build builds Go programs into a directory as `make build` does: static, the resolver
// under the name of ecs-resolver. Packages are import paths.
func Build(dir string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w: %s", err, out)
	}
	if slices.Contains(packages, "taskmeta/resolver") {
		return os.Rename(filepath.Join(dir, "resolver"), filepath.Join(dir, "ecs-resolver"))
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
