// Package packaging tests what `make deb` and `make image` build as those who install it
// meet it: on a machine that runs systemd and Docker, and as a container.
package packaging

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
)

const arn = "arn:aws:ecs:us-west-2:123456789012:task/default/web"

// dist is where the package was built.
var dist string

func TestMain(m *testing.M) {
	// Go parses the test's flags in m.Run; the package is built by the first to ask.
	code := m.Run()
	if dist != "" {
		if err := os.RemoveAll(dist); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// built builds the package once for all tests.
var built = sync.OnceValue(func() error {
	var err error
	if dist, err = os.MkdirTemp("", "taskmeta-dist-"); err != nil {
		return err
	}
	return makes("deb", "DIST="+dist)
})

// makes runs make in the checkout. A make that runs this test must not hand its own flags
// on.
func makes(words ...string) error {
	cmd := exec.Command("env", append([]string{"-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "-C", "../.."}, words...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make %s: %w: %s", strings.Join(words, " "), err, out)
	}
	return nil
}

// debian returns the package that was built.
func debian(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the package")
	}
	if err := built(); err != nil {
		t.Fatal(err)
	}
	return only(t, dist, "*.deb")
}

// only returns the one file of that pattern in a directory.
func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("make left %v of %s, want one file (%v)", found, pattern, err)
	}
	return found[0]
}

func TestPackageHoldsWhatItShould(t *testing.T) {
	deb := debian(t)
	archive, err := exec.Command("dpkg-deb", "--fsys-tarfile", deb).Output()
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]int64{}
	links := map[string]string{}
	files := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(h.Name, ".")
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 {
			t.Errorf("%s belongs to %d:%d with mode %o; want root's, which none else can write", name, h.Uid, h.Gid, h.Mode)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			modes[name] = h.Mode
		case tar.TypeSymlink:
			links[name] = h.Linkname
		}
		if strings.HasSuffix(name, ".8.gz") {
			lint(t, name, files)
		}
	}
	for name, mode := range map[string]int64{
		"/usr/sbin/ecs-resolver":                              0o755,
		"/opt/cni/bin/ecs-bridge":                             0o755,
		"/opt/cni/bin/ecs-ipam":                               0o755,
		"/usr/share/taskmeta/99-ecs-task.conflist":            0o644,
		"/etc/default/ecs-resolver":                           0o644,
		"/usr/lib/systemd/system/ecs-resolver.service":        0o644,
		"/usr/lib/systemd/system/ecs-resolver.socket":         0o644,
		"/usr/lib/systemd/system/ecs-resolver-netns.service":  0o644,
		"/usr/lib/systemd/network/05-taskmeta.network":        0o644,
		"/usr/lib/NetworkManager/conf.d/50-taskmeta.conf":     0o644,
		"/usr/share/bash-completion/completions/ecs-resolver": 0o644,
		"/usr/share/doc/taskmeta/copyright":                   0o644,
		"/usr/share/doc/taskmeta/api.md":                      0o644,
		"/usr/share/doc/taskmeta/security.md":                 0o644,
		"/usr/share/doc/taskmeta/quickstart.md":               0o644,
		"/usr/share/doc/taskmeta/troubleshooting.md":          0o644,
		"/usr/share/man/man8/ecs-resolver.8.gz":               0o644,
		"/usr/share/man/man8/ecs-resolver-serve.8.gz":         0o644,
		"/usr/share/man/man8/ecs-bridge.8.gz":                 0o644,
		"/usr/share/man/man8/ecs-ipam.8.gz":                   0o644,
	} {
		if got, ok := modes[name]; !ok || got != mode {
			t.Errorf("%s: mode %o (there: %t), want %o", name, got, ok, mode)
		}
	}
	for _, plugin := range []string{"ecs-bridge", "ecs-ipam"} {
		if got := links["/usr/lib/cni/"+plugin]; got != "/opt/cni/bin/"+plugin {
			t.Errorf("/usr/lib/cni/%s leads to %q", plugin, got)
		}
	}
}

// For another machine's architecture nothing is run that was built for it: neither for the
// manual pages, nor to make the package.
func TestPackageForAnotherArchitecture(t *testing.T) {
	debian(t)
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	dir := t.TempDir()
	// The programs stay those of this machine, which others test.
	if err := makes("--assume-old=build", "deb", "GOARCH="+other, "DIST="+dir); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dpkg-deb", "--field", only(t, dir, "*.deb"), "Architecture").CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != other {
		t.Errorf("the package is for %s (%v), want %s", got, err, other)
	}
}

// lint has groff read a compressed manual page and complain.
func lint(t *testing.T, name string, page io.Reader) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "gzip -d | groff -man -Tutf8 -ww -W break -z")
	cmd.Stdin = page
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s: %v: %s", name, err, out)
	}
}

// The whole life of the package on a machine: installed, used, restarted, removed without
// a trace.
func TestPackageOnAMachine(t *testing.T) {
	deb := debian(t)
	m := newMachine(t)
	m.put(t, deb, "/srv/taskmeta.deb", 0o644)
	before := m.traces(t)

	m.must(t, "dpkg", "--install", "/srv/taskmeta.deb")
	m.must(t, "systemctl", "start", "ecs-resolver") // waits for a start that is under way
	for _, unit := range []string{"ecs-resolver.service", "ecs-resolver.socket"} {
		if got := m.must(t, "systemctl", "is-active", unit); got != "active" {
			t.Errorf("%s is %s", unit, got)
		}
		if got := m.must(t, "systemctl", "is-enabled", unit); got != "enabled" {
			t.Errorf("%s is %s", unit, got)
		}
	}
	if out := m.must(t, "systemd-analyze", "verify", "ecs-resolver.service", "ecs-resolver.socket", "ecs-resolver-netns.service"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	m.must(t, "systemd-analyze", "security", "--offline=yes", "--threshold=30", "/usr/lib/systemd/system/ecs-resolver.service")

	// One label is all that a container needs.
	m.startDocker(t)
	m.must(t, "docker", "run", "--detach", "--name", "web", "--label", "com.amazonaws.ecs.task-arn="+arn, "busybox", "sleep", "1000")
	m.awaitTask(t)
	m.must(t, "ecs-resolver", "status") // everything is in place, by its defaults
	m.must(t, "systemctl", "restart", "ecs-resolver")
	m.awaitTask(t)

	m.must(t, "dpkg", "--remove", "taskmeta")
	if out := m.must(t, "sh", "-c", "ip -oneline link show; nft list tables"); strings.Contains(out, "ecs") {
		t.Errorf("after the removal there is\n%s", out)
	}
	m.must(t, "docker", "rm", "--force", "web")
	m.must(t, "systemctl", "stop", "docker.service", "docker.socket", "containerd.service")
	m.must(t, "dpkg", "--purge", "taskmeta")
	if after := m.traces(t); !slices.Equal(before, after) {
		t.Errorf("the package left files: before its installation there were\n%s\nafter its purge\n%s",
			strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// traces are the paths of the machine that may be the package's, or made by it.
func (m *machine) traces(t *testing.T) []string {
	t.Helper()
	out := m.must(t, "sh", "-c", `find /etc /opt /run /usr /var -xdev \( -path /run/udev -o -path /run/user -o -path /var/cache/man -o -path /var/lib/cni \) -prune -o \
		\( -name '*ecs-*' -o -name '*taskmeta*' \) -print; ls -d /opt/cni /etc/cni 2>/dev/null || true`)
	lines := strings.Fields(out)
	slices.Sort(lines)
	return lines
}

// startDocker starts the machine's own daemon, as it is configured by its package, and
// gives it an image named busybox.
func (m *machine) startDocker(t *testing.T) {
	t.Helper()
	m.must(t, "systemctl", "start", "docker")
	files, err := testnet.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	for path, from := range files {
		if target, ok := strings.CutPrefix(from, "->"); ok {
			m.must(t, "sh", "-c", "mkdir -p /srv/image/bin && ln -s "+target+" /srv/image"+path)
		} else {
			m.put(t, from, "/srv/image"+path, 0o755)
		}
	}
	m.must(t, "sh", "-c", "tar --directory /srv/image --create . | docker import - busybox")
}

// awaitTask waits until the container named web is told its task.
func (m *machine) awaitTask(t *testing.T) {
	t.Helper()
	testnet.Await(t, "the endpoint to answer", func() error {
		out, err := m.run("docker", "exec", "web", "wget", "-qO-", "http://169.254.170.2/v2/metadata")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		var task struct{ TaskARN string }
		if err := json.Unmarshal([]byte(out), &task); err != nil || task.TaskARN != arn {
			return fmt.Errorf("the answer is %s", out)
		}
		return nil
	})
}

// The socket is open before the service is, whoever opened it.
func TestSocketActivation(t *testing.T) {
	deb := debian(t)
	root := t.TempDir()
	if out, err := exec.Command("dpkg-deb", "--extract", deb, root).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb --extract: %v: %s", err, out)
	}
	ns := testnet.T(t)
	activate := exec.Command("systemd-socket-activate", "--listen", "127.0.0.1:51679", "--fdname", "tasks",
		filepath.Join(root, "usr/sbin/ecs-resolver"), "--bridge", "none", "--witness", "off",
		"--db", filepath.Join(root, "bindings.db"), "--docker-host", "unix://"+filepath.Join(root, "docker.sock"))
	said, err := activate.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Start(activate); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "Listening on") { // until the socket is open
	}
	go io.Copy(io.Discard, said)
	defer func() {
		_ = activate.Process.Signal(os.Interrupt)
		if err := activate.Wait(); err != nil {
			t.Errorf("the resolver ended with %v", err)
		}
	}()
	client := http.Client{Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Get("http://127.0.0.1:51679/v2/metadata")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable && resp.StatusCode != http.StatusForbidden {
		t.Errorf("the request that started the resolver was answered %s %s (%v)", resp.Status, body, err)
	}
}
