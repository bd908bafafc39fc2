package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

// bin is where the plugin is that the tests start.
var bin string

func TestMain(m *testing.M) {
	os.Exit(testnet.Programs{M: m, Packages: []string{"taskmeta/plugins/ecs-ipam"}, Dir: &bin}.Run())
}

func TestScripts(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("../../testdata/script/ipam*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	testscript.Run(t, testscript.Params{Files: scripts, Setup: func(env *testscript.Env) error {
		env.Setenv("PATH", bin+":"+env.Getenv("PATH"))
		return nil
	}})
}

const plainConf = `{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam"}}`

// A host is a place with a bindings file of its own where a runtime starts the plugin.
type host struct{ db string }

func newHost(t testing.TB) host {
	t.Helper()
	return host{db: filepath.Join(t.TempDir(), "state", "bindings.db")}
}

// command is one start of the plugin.
func (h host) command(verb, container, conf string) *exec.Cmd {
	return testnet.Call{
		Program: filepath.Join(bin, "ecs-ipam"), Path: "/opt/cni/bin", Env: []string{"IPAM_DB_PATH=" + h.db},
		Verb: verb, Container: container, Netns: "/run/netns/" + container, Conf: conf,
	}.Command(context.Background())
}

// call starts the plugin and returns what it answers, see [testnet.Answer].
func (h host) call(verb, container, conf string) (*current.Result, error) {
	return testnet.Answer(nil, h.command(verb, container, conf))
}

// bindings are those that the resolver would see, after a check of the file's pages.
func (h host) bindings(t testing.TB) []*ecs.Binding {
	t.Helper()
	r, err := bindingdb.NewReader(h.db, bindingdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.db); err == nil {
		testnet.CheckPages(t, h.db)
	}
	return s.All()
}

func TestResultInEveryVersion(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for i, version := range cniedge.Versions {
		cmd := h.command("ADD", fmt.Sprintf("c%d", i), strings.Replace(plainConf, "1.1.0", version, 1))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		var got map[string]any
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		ip := map[string]any{"address": fmt.Sprintf("169.254.172.%d/22", i+2), "gateway": "169.254.172.1"}
		want := map[string]any{
			"cniVersion": version,
			"ips":        []any{ip},
			"routes":     []any{map[string]any{"dst": "169.254.170.2/32", "gw": "169.254.172.1"}},
		}
		if strings.HasPrefix(version, "0.") {
			ip["version"] = "4"
			want["dns"] = map[string]any{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
	}
}

func TestConfigurationOfAWS(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	conf, err := os.ReadFile("../../testdata/conf/ipam-aws.json")
	if err != nil {
		t.Fatal(err)
	}
	result, err := h.call("ADD", "c1", string(conf))
	if err != nil {
		t.Fatal(err)
	}
	if got := result.IPs[0].Address.String(); got != "10.0.0.2/24" {
		t.Errorf("address %s", got)
	}
	if len(result.Routes) != 2 {
		t.Errorf("routes %v", result.Routes)
	}
	if b := h.bindings(t)[0]; b.Owner() != "12345" {
		t.Errorf("owner %q", b.Owner())
	}
	if _, err := h.call("DEL", "c1", string(conf)); err != nil {
		t.Fatal(err)
	}
	if left := h.bindings(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestIdentityOfTheTask(t *testing.T) {
	t.Parallel()
	const arn = "arn:aws:ecs:eu-west-1:123456789012:task/prod/0123456789abcdef"
	labels := `{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam", "id": "pause"},
		"args": {"cni": {"labels": [{"key": "com.amazonaws.ecs.task-arn", "value": "` + arn + `"}, {"key": "taskmeta.task-cpu", "value": "0.5"}]}}}`
	tests := map[string]struct {
		conf, args string
		want       ecs.Binding
	}{
		"labels": {conf: labels, args: "TASK_ARN=another", want: ecs.Binding{TaskARN: arn, ID: "pause",
			Labels: map[string]string{ecs.LabelTaskARN: arn, ecs.LabelTaskCPU: "0.5"}}},
		"CNI_ARGS": {conf: plainConf, args: "IgnoreUnknown=1;K8S_POD_NAME=web;TASK_ARN=" + arn, want: ecs.Binding{TaskARN: arn}},
		"none":     {conf: plainConf, want: ecs.Binding{}},
		"next hops": {
			conf: `{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.3.0.0/24", "ipv4-routes": [{"dst": "169.254.170.2/32"},
				{"dst": "10.8.0.0/16", "gw": "10.3.0.7"}, {"dst": "10.9.0.0/16", "gw": "10.3.0.7"}, {"dst": "10.10.0.0/16", "gw": "10.3.0.1"}, {"dst": "10.11.0.0/16", "gw": "10.4.0.1"}]}}`,
			want: ecs.Binding{Hops: []netip.Addr{netip.MustParseAddr("10.3.0.7")}},
		},
		"addresses of the plugins before": {
			conf: `{"cniVersion": "0.4.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam"}, "prevResult": {"cniVersion": "0.4.0",
				"ips": [{"version": "4", "address": "10.9.0.4/24"}, {"version": "6", "address": "2001:db8::4/64"}]}}`,
			want: ecs.Binding{TaskAddrs: []netip.Addr{netip.MustParseAddr("10.9.0.4"), netip.MustParseAddr("2001:db8::4")}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, netns := newHost(t), testnet.T(t)
			var ns unix.Stat_t
			if err := unix.Stat(netns.Path(), &ns); err != nil {
				t.Fatal(err)
			}
			cmd := h.command("ADD", "c1", test.conf)
			cmd.Env = append(cmd.Env, "CNI_ARGS="+test.args, "CNI_NETNS="+netns.Path())
			if _, err := testnet.Answer(nil, cmd); err != nil {
				t.Fatal(err)
			}
			got := *h.bindings(t)[0]
			want := test.want
			want.Attachment = ecs.Attachment{Network: "ecs-task", Container: "c1", IfName: "eth0"}
			want.Netns, want.NetnsID = netns.Path(), ns.Ino
			want.Addrs, want.BootID, want.Created = got.Addrs, got.BootID, got.Created
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			if got.BootID == "" || time.Since(got.Created) > time.Minute {
				t.Errorf("boot %q, created %s", got.BootID, got.Created)
			}
		})
	}
}

// A runtime that starts all tasks of a host at once: none fails, no address is given twice,
// and none is left after as many DELs at once.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const n = 64
	all := func(verb string) map[string]bool {
		given := make(map[string]bool)
		var mu sync.Mutex
		var group sync.WaitGroup
		for i := range n {
			group.Go(func() {
				result, err := h.call(verb, fmt.Sprintf("c%d", i), plainConf)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v", verb, err)
				} else if result != nil {
					given[result.IPs[0].Address.String()] = true
				}
			})
		}
		group.Wait()
		return given
	}
	if given := all("ADD"); len(given) != n {
		t.Errorf("%d different addresses, want %d", len(given), n)
	}
	if bindings := h.bindings(t); len(bindings) != n {
		t.Errorf("%d bindings, want %d", len(bindings), n)
	}
	all("DEL")
	if left := h.bindings(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// GC beside ADDs frees all that is not listed and nothing that was added meanwhile.
func TestCollectBesideAdd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const n = 16
	var valid []string
	for i := range n {
		if _, err := h.call("ADD", fmt.Sprintf("old%d", i), plainConf); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			valid = append(valid, fmt.Sprintf(`{"containerID": "old%d", "ifname": "eth0"}`, i))
		}
	}
	gc := h.command("GC", "", strings.TrimSuffix(plainConf, "}")+`, "cni.dev/valid-attachments": [`+strings.Join(valid, ",")+`]}`)
	// GC has begun once it reads, which it must before more than a pipe holds can be written;
	// it goes on when its configuration is there, in the middle of the ADDs.
	conf := gc.Stdin
	gc.Stdin = nil
	stdin, err := gc.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := gc.Start(); err != nil {
		t.Fatal(err)
	}
	const pipeHolds = 64 << 10
	if _, err := stdin.Write(bytes.Repeat([]byte(" "), 2*pipeHolds)); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			if _, err := h.call("ADD", fmt.Sprintf("new%d", i), plainConf); err != nil {
				t.Error(err)
			}
			if i == n/2 {
				io.Copy(stdin, conf)
				stdin.Close()
			}
		})
	}
	group.Wait()
	if err := gc.Wait(); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]bool)
	for _, b := range h.bindings(t) {
		got[b.Container] = true
	}
	for i := range n {
		if old := fmt.Sprintf("old%d", i); got[old] != (i%2 == 0) {
			t.Errorf("%s: kept %v", old, got[old])
		}
		if !got[fmt.Sprintf("new%d", i)] {
			t.Errorf("new%d was freed", i)
		}
	}
}

// Whenever ADD or DEL is killed, the DEL that follows succeeds and leaves nothing, and the
// file is whole.
func TestKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if _, err := h.call("ADD", "stays", plainConf); err != nil {
		t.Fatal(err)
	}
	span := 2 * took(t, func() { h.call("ADD", "timed", plainConf) })
	if _, err := h.call("DEL", "timed", plainConf); err != nil {
		t.Fatal(err)
	}
	for round := range testnet.Soak(20, 500) {
		for _, verb := range []string{"ADD", "DEL"} {
			container := fmt.Sprintf("c%d", round)
			if verb == "DEL" {
				if _, err := h.call("ADD", container, plainConf); err != nil {
					t.Fatalf("round %d: ADD: %v", round, err)
				}
			}
			victim := h.command(verb, container, plainConf)
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(rand.N(span)) // the instant is the point of the test
			victim.Process.Kill()
			victim.Wait()
			if _, err := h.call("DEL", container, plainConf); err != nil {
				t.Fatalf("round %d: DEL after a killed %s: %v", round, verb, err)
			}
		}
		if left := h.bindings(t); len(left) != 1 || left[0].Container != "stays" {
			t.Fatalf("round %d: left: %v", round, left)
		}
	}
}

func took(t testing.TB, do func()) time.Duration {
	t.Helper()
	start := time.Now()
	do()
	return time.Since(start)
}

// Every verb answers a damaged file in JSON and leaves it as it is.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	tests := map[string]func([]byte) []byte{
		"empty":     func(b []byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)/2+100] },
		"zeroed":    func(b []byte) []byte { return make([]byte, len(b)) },
		"zeroed behind the first two pages": func(b []byte) []byte {
			clear(b[2*os.Getpagesize():])
			return b
		},
		"random": func(b []byte) []byte {
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
			return b
		},
	}
	conf := strings.TrimSuffix(plainConf, "}") + `, "cni.dev/valid-attachments": [],
		"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "169.254.172.2/22"}]}}`
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			for i := range 3 {
				if _, err := h.call("ADD", fmt.Sprintf("c%d", i), plainConf); err != nil {
					t.Fatal(err)
				}
			}
			whole, err := os.ReadFile(h.db)
			if err != nil {
				t.Fatal(err)
			}
			broken := damage(whole)
			if err := os.WriteFile(h.db, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			for verb, code := range map[string]uint{"ADD": 104, "DEL": 104, "CHECK": 104, "GC": 104, "STATUS": 50} {
				_, err := h.call(verb, "c1", conf)
				failure := (*types.Error)(nil)
				if !errors.As(err, &failure) || failure.Code != code || !strings.Contains(failure.Details, h.db) {
					t.Errorf("%s: %v, want code %d", verb, err, code)
				}
			}
			if after, err := os.ReadFile(h.db); err != nil || !bytes.Equal(after, broken) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}

// A file system that is full, or read-only: the error is in JSON and names the file, no
// binding is lost, and all goes on when there is room again. The file systems live in a
// mount namespace that ends with the script.
func TestFileSystems(t *testing.T) {
	t.Parallel()
	testnet.Need(t)
	tests := map[string]string{
		"full": `
			mount -t tmpfs -o size=256k none "$STATE"
			CNI_CONTAINERID=c1 ecs-ipam < "$CONF"
			dd if=/dev/zero of="$STATE/fill" bs=4k 2>/dev/null && exit 9
			cp "$IPAM_DB_PATH" before
			for i in 2 3 4 5 6 7 8 9; do
				if ! CNI_CONTAINERID=c$i ecs-ipam < "$CONF" > answer; then failed=$i; break; fi
			done
			grep '"code": 5' answer && grep 'no space left on device' answer && [ -n "$failed" ]
			rm "$STATE/fill"
			CNI_CONTAINERID=c$failed ecs-ipam < "$CONF" | grep "172.$((failed+1))/22"
			CNI_COMMAND=DEL CNI_CONTAINERID=c1 ecs-ipam < "$CONF"`,
		"full from the start": `
			mount -t tmpfs -o size=16k none "$STATE"
			dd if=/dev/zero of="$STATE/fill" bs=4k 2>/dev/null && exit 9
			! CNI_CONTAINERID=c1 ecs-ipam < "$CONF" > answer
			grep '"code": 5' answer && grep 'no space left on device' answer
			rm "$STATE/fill"
			! [ -e "$IPAM_DB_PATH" ]`,
		"read-only": `
			CNI_CONTAINERID=c1 ecs-ipam < "$CONF"
			cp "$IPAM_DB_PATH" before
			mount --bind "$STATE" "$STATE"
			mount -o remount,ro,bind "$STATE"
			! CNI_CONTAINERID=c2 ecs-ipam < "$CONF" > answer
			grep '"code": 5' answer && grep 'read-only file system' answer
			cmp before "$IPAM_DB_PATH"`,
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			state, conf := filepath.Join(dir, "state"), filepath.Join(dir, "net.json")
			if err := errors.Join(os.Mkdir(state, 0o700), os.WriteFile(conf, []byte(plainConf), 0o600)); err != nil {
				t.Fatal(err)
			}
			cmd := host{db: filepath.Join(state, "bindings.db")}.command("ADD", "", "")
			shell := exec.Command("sh", "-exc", "mount --make-rprivate /\n"+script)
			shell.Dir = dir
			shell.Env = append(cmd.Env, "STATE="+state, "CONF="+conf, "PATH="+bin+":"+os.Getenv("PATH"))
			shell.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
			if out, err := shell.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
