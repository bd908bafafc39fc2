package testnet

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startTime bounds the start and the end of a Docker daemon.
const startTime = time.Minute

// A Daemon is a Docker engine of a test's own: its data, its containers and its socket
// are in a temporary directory, and it leaves the network alone. Its containers live on
// while it is stopped, unless it ends them.
type Daemon struct {
	Host string // the value of DOCKER_HOST
	// EndContainers has it end its containers with itself, from its next start on, as Docker
	// does by default (live-restore is off).
	EndContainers bool

	ns     *Namespace
	engine engine
	dir    string
	cmd    *exec.Cmd
	log    *tail
	done   chan struct{} // closed when the running daemon has ended
}

// StartDocker starts a daemon in the namespace and waits until it answers.
func StartDocker(n *Namespace) (*Daemon, error) {
	e, err := newEngine()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "taskmeta-docker-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{Host: "unix://" + filepath.Join(dir, "docker.sock"), ns: n, engine: e, dir: dir}
	if err := d.Start(); err != nil {
		return nil, errors.Join(err, d.Stop(), d.clear())
	}
	return d, nil
}

// Start starts the daemon again after Stop and waits until it answers.
func (d *Daemon) Start() error {
	d.log = &tail{}
	args := []string{
		"--host", d.Host,
		"--data-root", filepath.Join(d.dir, "data"),
		"--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "docker.pid"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false",
	}
	if !d.EndContainers {
		args = append(args, "--live-restore")
	}
	d.cmd = d.engine.command(context.Background(), "dockerd", args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.ns.Start(d.cmd); err != nil {
		return fmt.Errorf("starting dockerd: %w", err)
	}
	d.done = make(chan struct{})
	go func() {
		_ = d.cmd.Wait()
		close(d.done)
	}()
	if err := d.await(); err != nil {
		return err
	}
	return d.engine.keep(d.cmd.Process)
}

// await returns when the daemon answers.
func (d *Daemon) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	socket := strings.TrimPrefix(d.Host, "unix://")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		// The engine accepts once it is ready: a ping by hand spares a client library.
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(c, "GET /_ping HTTP/1.0\r\n\r\n")
			reply, _ := io.ReadAll(c)
			_ = c.Close()
			if bytes.HasSuffix(reply, []byte("OK")) {
				return nil
			}
		}
		select {
		case <-d.done:
			return fmt.Errorf("dockerd ended: %s", d.log)
		case <-ctx.Done():
			return fmt.Errorf("dockerd does not answer: %s", d.log)
		case <-tick.C:
		}
	}
}

// Stop ends the daemon. Its containers run on.
func (d *Daemon) Stop() error {
	if d.cmd == nil || d.cmd.Process == nil {
		return nil
	}
	select {
	case <-d.done:
		return nil
	default:
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping dockerd: %w", err)
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(startTime):
		return errors.Join(fmt.Errorf("dockerd does not stop: %s", d.log), d.cmd.Process.Kill())
	}
}

// Pause stops the daemon's threads, so that it accepts connections and never answers.
func (d *Daemon) Pause() error { return d.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (d *Daemon) Resume() error { return d.cmd.Process.Signal(syscall.SIGCONT) }

// CLI runs the docker command and returns what it printed, without the last newline.
func (d *Daemon) CLI(args ...string) (string, error) {
	return d.cli(nil, args...)
}

func (d *Daemon) cli(stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	cmd := d.engine.command(ctx, "docker", append([]string{"--host", d.Host}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, complaint.String())
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}

// Import makes an image of files: paths in the image to paths on this machine. A path
// on this machine that starts with "->" makes a symbolic link instead. Changes are
// instructions of a Dockerfile, such as "EXPOSE 80".
func (d *Daemon) Import(name string, files map[string]string, changes ...string) error {
	var buf bytes.Buffer
	if err := pack(&buf, files); err != nil {
		return fmt.Errorf("making image %s: %w", name, err)
	}
	args := []string{"import"}
	for _, change := range changes {
		args = append(args, "--change", change)
	}
	_, err := d.cli(&buf, append(args, "-", name)...)
	return err
}

// pack writes an archive of files, as Import takes them.
func pack(to io.Writer, files map[string]string) error {
	w := tar.NewWriter(to)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if err := add(w, path, files[path]); err != nil {
			return fmt.Errorf("adding %s: %w", path, err)
		}
	}
	return w.Close()
}

func add(w *tar.Writer, path, from string) error {
	name := strings.TrimPrefix(path, "/")
	if target, ok := strings.CutPrefix(from, "->"); ok {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}

// Busybox are the files of an image with a shell and the usual commands, from the
// static busybox of this machine.
func Busybox() (map[string]string, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("finding busybox (Debian: busybox-static): %w", err)
	}
	files := map[string]string{"/bin/busybox": path}
	for _, applet := range []string{"sh", "sleep", "wget", "nc", "ip", "ls", "cat", "ps", "true", "kill", "httpd"} {
		files["/bin/"+applet] = "->busybox"
	}
	return files, nil
}

// Image is Import for a test.
func (d *Daemon) Image(t testing.TB, name string, files map[string]string, changes ...string) {
	t.Helper()
	if err := d.Import(name, files, changes...); err != nil {
		t.Fatal(err)
	}
}

// Run is `docker run --detach` for a test; it returns the container's full ID.
func (d *Daemon) Run(t testing.TB, args ...string) string {
	t.Helper()
	id, err := d.CLI(append([]string{"run", "--detach"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Pid returns the process ID of a container's first process.
func (d *Daemon) Pid(t testing.TB, container string) string {
	t.Helper()
	pid, err := d.CLI("inspect", "--format", "{{.State.Pid}}", container)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Close removes the containers, ends the daemon and removes its directory. A daemon that
// is stopped or paused is woken up for it, since nobody else ends its containers.
func (d *Daemon) Close() error {
	return errors.Join(d.removeAll(), d.Stop(), d.clear())
}

func (d *Daemon) clear() error {
	return errors.Join(d.engine.close(), unmountBelow(d.dir), os.RemoveAll(d.dir))
}

func (d *Daemon) removeAll() error {
	select {
	case <-d.done:
		if err := d.Start(); err != nil {
			return err
		}
	default:
		if err := d.Resume(); err != nil {
			return fmt.Errorf("resuming dockerd: %w", err)
		}
	}
	ids, err := d.CLI("ps", "--all", "--quiet", "--no-trunc")
	if err != nil || ids == "" {
		return err
	}
	_, err = d.CLI(append([]string{"rm", "--force", "--volumes"}, strings.Fields(ids)...)...)
	return err
}

// unmountBelow detaches what a daemon that did not end well left mounted under dir.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, dir+"/") {
			err := unix.Unmount(point, unix.MNT_DETACH)
			if err != nil && !errors.Is(err, unix.EINVAL) { // gone since
				errs = append(errs, fmt.Errorf("unmounting %s: %w", point, err))
			}
		}
	}
	return errors.Join(errs...)
}

// tail keeps the end of what a daemon prints, for messages.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - 4096; over > 0 {
		t.kept = t.kept[over:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}
