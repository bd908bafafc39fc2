package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"taskmeta/internal/dev/testnet"
)

// A host is the process that holds the demo's network namespace, its Docker engine and its
// resolver: with its end all are gone.
type host struct {
	Pid    int
	Netns  string
	Docker string
	Dir    string
	Bin    string // the folder of taskmeta's programs
	Err    string // why it could not be made, or not be taken down

	cmd     *exec.Cmd
	control io.WriteCloser
	reports *json.Decoder
}

func (h *host) db() string  { return filepath.Join(h.Dir, "bindings.db") }
func (h *host) log() string { return filepath.Join(h.Dir, "resolver.log") }

// startHost starts this program again as the host and waits until it is up.
func startHost() (*host, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-host")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt is this process's to handle
	control, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	h := &host{cmd: cmd, control: control, reports: json.NewDecoder(out)}
	if err := h.report(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the host: %w", err), h.stop())
	}
	return h, nil
}

// report reads what the host says next: where it is, or what went wrong.
func (h *host) report() error {
	if err := h.reports.Decode(h); err != nil {
		return err
	}
	if h.Err != "" {
		return errors.New(h.Err)
	}
	return nil
}

// stop ends the host and waits until all of it is gone.
func (h *host) stop() error {
	err := h.control.Close()
	if said := h.report(); !errors.Is(said, io.EOF) {
		err = errors.Join(err, said)
	}
	return errors.Join(err, h.cmd.Wait())
}

// release lets the host live on without this process.
func (h *host) release() error {
	_, err := io.WriteString(h.control, "stay\n")
	return errors.Join(err, h.cmd.Process.Release())
}

// beHost makes the host, tells on stdout where it is, and takes it down when stdin ends
// without the word "stay", or on a signal. Errors go the same way, since the host may
// outlive the terminal.
func beHost() {
	if err := hold(); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(host{Err: err.Error()})
		os.Exit(1)
	}
}

func hold() (err error) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "taskmeta-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ns, err := testnet.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	docker, err := testnet.StartDocker(ns)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, docker.Close()) }()
	if err := docker.ImportBusybox(image, nil); err != nil {
		return err
	}
	h := host{Pid: os.Getpid(), Netns: ns.Path(), Docker: docker.Host, Dir: dir, Bin: bin}
	resolver := testnet.Resolver{
		Host: ns, Program: filepath.Join(bin, "ecs-resolver"), Args: []string{"serve", "--auto-attach"},
		Env: []string{"DOCKER_HOST=" + h.Docker, "IPAM_DB_PATH=" + h.db()}, LogFile: h.log(),
	}
	defer func() { err = errors.Join(err, resolver.Stop(), resolver.Unpin()) }()
	if err := resolver.Start(); err != nil {
		return err
	}
	if err := resolver.AwaitOK(context.Background(), "/readyz"); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(h); err != nil {
		return err
	}
	left := make(chan struct{})
	go func() {
		if line, _ := bufio.NewReader(os.Stdin).ReadString('\n'); line != "stay\n" {
			close(left)
		}
	}()
	select {
	case <-stop:
	case <-left:
	}
	return nil
}
