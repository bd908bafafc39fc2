package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/dev/testnet/fakedocker"
)

// The socket of another user, as rootless Docker's is, opens to a resolver that root runs, if
// it may keep CAP_DAC_OVERRIDE. If not, the log says why it does not, and what to do. A socket
// of root's costs no capability.
func TestADockerSocketOfAnotherUsers(t *testing.T) {
	if testing.Short() {
		t.Skip("starts the resolver")
	}
	tests := map[string]struct {
		program           []string
		owner             int
		socket, folder    os.FileMode
		opens, overriding bool
	}{
		"root's":                             {nil, 0, 0o600, 0o755, true, false},
		"another user's":                     {nil, 12345, 0o600, 0o755, true, true},
		"another user's, in a folder of its": {nil, 12345, 0o666, 0o700, true, true},
		"another user's, open to all":        {nil, 12345, 0o666, 0o755, true, false},
		"without the capability":             {[]string{"setpriv", "--bounding-set", "-dac_override,-dac_read_search"}, 12345, 0o600, 0o755, false, false},
		"a folder without the capability":    {[]string{"setpriv", "--bounding-set", "-dac_override,-dac_read_search"}, 12345, 0o600, 0o700, false, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, dir := testnet.T(t), t.TempDir()
			f := fakedocker.T(t)
			f.Serve(t)
			path := strings.TrimPrefix(f.Host, "unix://")
			for p, mode := range map[string]os.FileMode{path: test.socket, filepath.Dir(path): test.folder} {
				if err := os.Chmod(p, mode); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(p, test.owner, test.owner); err != nil {
					t.Fatal(err)
				}
			}
			words := append(test.program, filepath.Join(bin, "ecs-resolver"), "--db", filepath.Join(dir, "bindings.db"), "--docker-host", f.Host)
			resolver := &testnet.Resolver{Host: ns, Program: words[0], Args: words[1:], LogFile: filepath.Join(dir, "resolver.log")}
			resolver.Serve(t, "/healthz")
			if test.opens {
				resolver.AwaitLog(t, "the Docker daemon is connected")
			} else {
				resolver.AwaitLog(t, "the Docker daemon is unavailable", "permission denied on "+path, "CAP_DAC_OVERRIDE")
			}
			if overrides, err := effective(resolver.Pid(), unix.CAP_DAC_OVERRIDE); err != nil || overrides != test.overriding {
				t.Errorf("the resolver has CAP_DAC_OVERRIDE: %t (%v), want %t", overrides, err, test.overriding)
			}
		})
	}
}

// effective reports whether a process has a capability.
func effective(pid, capability int) (bool, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false, err
	}
	found := regexp.MustCompile(`(?m)^CapEff:\s*([0-9a-f]+)$`).FindSubmatch(text)
	if found == nil {
		return false, fmt.Errorf("no capabilities in %s", text)
	}
	set, err := strconv.ParseUint(string(found[1]), 16, 64)
	return set>>capability&1 == 1, err
}
