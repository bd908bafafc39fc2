package testnet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// answerTime bounds a boot, and each command. Alone on two processors a boot takes half a
// minute; without acceleration, and beside other work, it may take many times that.
const answerTime = 10 * time.Minute

// A Machine is a Debian system that boots in qemu, with a kernel of its own. It has no
// network, and what it writes to its disk ends with the test.
type Machine struct {
	shell   io.Writer
	lines   <-chan string // what the shell says; closed when the machine has ended
	console string        // the file of what the kernel and systemd say
}

// Boot boots the system that tree.sh has made of that name, and waits until it is up. The
// files are in its folder /srv; they are named as those of [Daemon.Import] are.
func Boot(t testing.TB, name string, files map[string]string) *Machine {
	t.Helper()
	dir := t.TempDir()
	disk, err := os.Create(filepath.Join(dir, "files.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pack(disk, files), disk.Close()); err != nil {
		t.Fatal(err)
	}
	m := &Machine{console: filepath.Join(dir, "console")}
	made := system(name)
	// The folder is also where qemu keeps what the machine writes to its disk.
	qemu := exec.Command("env", "TMPDIR="+dir, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048", "-nodefaults", "-nographic", "-nic", "none",
		"-kernel", filepath.Join(made, "vmlinuz"), "-initrd", filepath.Join(made, "initrd.img"),
		"-append", "root=/dev/vda rw console=ttyS0", "-serial", "file:"+m.console,
		"-drive", "if=virtio,format=raw,snapshot=on,file="+filepath.Join(made, "disk"),
		"-drive", "if=virtio,format=raw,readonly=on,file="+disk.Name(),
		"-device", "virtio-serial", "-chardev", "stdio,id=shell", "-device", "virtserialport,chardev=shell,name=shell")
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	qemu.Stderr = os.Stderr
	m.shell, err = qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	m.lines = lines(out)
	t.Cleanup(func() {
		_ = qemu.Process.Kill()
		for range m.lines { // until it has ended
		}
		_ = qemu.Wait()
		if t.Failed() {
			t.Logf("the end of the console:\n%s", m.consoleEnd())
		}
	})
	m.awaitBoot(t)
	m.Must(t, "tar -C /srv -xf /dev/vdb")
	return m
}

// lines are those that r gives, until its end.
func lines(r io.Reader) <-chan string {
	c := make(chan string)
	go func() {
		defer close(c)
		for in := bufio.NewReader(r); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			c <- strings.TrimSuffix(line, "\n")
		}
	}()
	return c
}

func (m *Machine) consoleEnd() string {
	text, err := os.ReadFile(m.console)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-8192):])
}

// awaitBoot waits until the shell is there and systemd has started all that it is to start.
func (m *Machine) awaitBoot(t testing.TB) {
	t.Helper()
	began := time.Now()
	if _, _, err := m.until("ready"); err != nil {
		t.Fatalf("booting: %v", err)
	}
	m.Must(t, "systemctl is-system-running --wait || { systemctl --failed; exit 1; }")
	t.Logf("it is up after %v", time.Since(began).Round(time.Second))
}

// Reboot has the machine shut down and boot again. The shell may be ended before it says so.
func (m *Machine) Reboot(t testing.TB) {
	t.Helper()
	const line = "systemctl reboot"
	t.Logf("$ %s", line)
	if _, err := fmt.Fprintln(m.shell, line); err != nil {
		t.Fatal(err)
	}
	m.awaitBoot(t)
}

// Must runs a line of shell, prints it and what it said, and returns that. It must succeed.
func (m *Machine) Must(t testing.TB, line string) string {
	t.Helper()
	return m.await(t, line, 0)
}

// Await is Must for what succeeds after a while: it is run until it does.
func (m *Machine) Await(t testing.TB, line string) string {
	t.Helper()
	return m.await(t, line, answerTime)
}

func (m *Machine) await(t testing.TB, line string, within time.Duration) string {
	t.Helper()
	t.Logf("$ %s", line)
	for deadline := time.Now().Add(within); ; time.Sleep(time.Second) {
		out, code := m.run(t, line)
		if code == "0" {
			if out != "" {
				t.Log(out)
			}
			return out
		}
		if time.Now().After(deadline) {
			journal, _ := m.run(t, "journalctl --no-pager -n 100")
			t.Fatalf("exit code %s: %s\nthe journal ends:\n%s", code, out, journal)
		}
	}
}

// run runs a line of shell, and returns what it said and its exit code.
func (m *Machine) run(t testing.TB, line string) (out, code string) {
	t.Helper()
	if _, err := fmt.Fprintln(m.shell, line); err != nil {
		t.Fatal(err)
	}
	said, code, err := m.until("exit ")
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, said)
	}
	return strings.TrimSpace(said), code
}

// until reads what the shell says before a line that starts so, and the rest of that line.
func (m *Machine) until(start string) (said, rest string, err error) {
	deadline := time.After(answerTime)
	for {
		select {
		case line, ok := <-m.lines:
			if !ok {
				return said, "", errors.New("the machine has ended")
			}
			if rest, ok := strings.CutPrefix(line, start); ok {
				return said, rest, nil
			}
			said += line + "\n"
		case <-deadline:
			return said, "", fmt.Errorf("no end of it within %v", answerTime)
		}
	}
}
