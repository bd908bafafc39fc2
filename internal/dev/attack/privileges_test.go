package attack

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// holds checks the capabilities of every thread of a process.
func holds(t *testing.T, pid int, want uint64) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("the threads of process %d: %v, %v", pid, files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if os.IsNotExist(err) { // the thread has ended since
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		sets := map[string]uint64{"CapInh": 0, "CapPrm": want, "CapEff": want, "CapAmb": 0}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			wanted, ok := sets[name]
			if !ok {
				continue
			}
			delete(sets, name)
			if got, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err != nil || got != wanted {
				t.Errorf("%s: %s is %#x (%v); want %#x", file, name, got, err, wanted)
			}
		}
		if len(sets) > 0 {
			t.Errorf("%s does not tell of %v", file, sets)
		}
	}
}

// TestPrivileges looks at the capabilities of resolvers that run, and has one run as
// somebody who never had any.
func TestPrivileges(t *testing.T) {
	const both = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_PTRACE
	for name, tt := range map[string]struct {
		flags []string
		want  uint64
	}{
		"by default":                   {nil, both | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW},
		"without a witness":            {[]string{"--witness", "off"}, both | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW},
		"without a bridge":             {[]string{"--bridge", "none", "--listen", "127.0.0.1:51679"}, both},
		"without a bridge and witness": {[]string{"--bridge", "none", "--listen", "127.0.0.1:51679", "--witness", "off"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newHost(t, strict)
			w.serve(t, tt.flags...)
			holds(t, w.resolver.Pid(), tt.want)
		})
	}
	t.Run("as nobody", func(t *testing.T) {
		t.Parallel()
		w := newHost(t, plain)
		k := w.newTask(t, "task")
		w.attach(t, k)
		// What it reads is to be readable for it: no more.
		socket := strings.TrimPrefix(docker.Host, "unix://")
		for path, mode := range map[string]os.FileMode{
			socket: 0o666, filepath.Dir(socket): 0o755, w.db: 0o644, w.db + ".lock": 0o644,
			filepath.Dir(w.db): 0o755, filepath.Dir(filepath.Dir(w.db)): 0o755,
		} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
		w.user = &syscall.Credential{Uid: 65534, Gid: 65534}
		server := netip.AddrPortFrom(endpoint4.Addr(), 8080)
		w.serve(t, "--listen", server.String())
		holds(t, w.resolver.Pid(), 0)
		testnet.Await(t, "the task's own answer", func() error {
			_, body, err := ask(k.Namespace, k.ip4, metadataURL(server), 5*time.Second)
			if err == nil && !strings.Contains(body, k.arn) {
				err = fmt.Errorf("%s is not in %s", k.arn, body)
			}
			return err
		})
	})
}
