// Demo shows taskmeta's main job on a host of its own: a network namespace with a Docker
// engine in it, one task of three containers, the plugins, and the resolver. Nothing of
// the machine's own network is touched, and nothing is left behind.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	keep := flag.Bool("keep", false, "leave the host up, to explore it")
	asHost := flag.Bool("host", false, "be the host: the demo starts itself so")
	flag.Parse()
	if *asHost {
		beHost()
		return
	}
	if err := show(*keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const (
	arn     = "arn:aws:ecs:us-west-2:123456789012:task/default/0123456789abcdef0123456789abcdef"
	network = "ecs-task"
	image   = "taskmeta-demo"
)

// show plays the demo from its first step to its last.
func show(keep bool) (err error) {
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	step("A host of its own: a network namespace with a Docker engine in it")
	h, err := startHost()
	if err != nil {
		return err
	}
	defer func() {
		if err == nil && keep {
			err = h.release()
			return
		}
		err = errors.Join(err, h.stop())
	}()
	fmt.Printf("  network namespace %s, engine at %s\n", h.Netns, h.Docker)

	step("A task: a pause container that holds its network, and two applications in it")
	labels := []string{
		"--label", "com.amazonaws.ecs.task-arn=" + arn,
		"--label", "com.amazonaws.ecs.cluster=default",
		"--label", "com.amazonaws.ecs.task-definition-family=web",
		"--label", "com.amazonaws.ecs.task-definition-version=7",
	}
	run := func(name, network string, words ...string) error {
		args := append([]string{"docker", "run", "--detach", "--name", name, "--network", network}, labels...)
		args = append(args, "--label", "com.amazonaws.ecs.container-name="+name)
		return h.sh(append(args, words...)...)
	}
	err = errors.Join(
		run("pause", "none", image, "sleep", "100000"),
		run("app", "container:pause", "--memory", "64m", "--cpu-shares", "256", image, "sleep", "100000"),
		run("sidecar", "container:pause", image, "sleep", "100000"),
	)
	if err != nil {
		return err
	}

	step("The task is attached: a CNI runtime (here cnitool) calls ecs-bridge, and that ecs-ipam")
	pause, err := h.output("docker", "inspect", "--format", "{{.Id}} {{.State.Pid}}", "pause")
	if err != nil {
		return err
	}
	id, pid, _ := strings.Cut(strings.TrimSpace(pause), " ")
	if err := h.configure(id); err != nil {
		return err
	}
	attach := []string{"NETCONFPATH=" + h.Dir, "CNI_PATH=" + bin, filepath.Join(h.Dir, "cnitool")}
	netns := "/proc/" + pid + "/ns/net"
	if err := h.sh(h.inside(append(attach, "add", network, netns)...)...); err != nil {
		return err
	}

	step("The resolver runs on the host")
	if err := h.startResolver(filepath.Join(bin, "ecs-resolver")); err != nil {
		return err
	}

	step("The application asks who it is")
	app, err := h.output("docker", "inspect", "--format", "{{.Id}}", "app")
	if err != nil {
		return err
	}
	base := "http://169.254.170.2/v2"
	for _, url := range []string{
		base + "/metadata",
		base + "/metadata/" + strings.TrimSpace(app),
		base + "/stats/" + strings.TrimSpace(app),
		base + "/stats",
	} {
		if err := h.sh("docker", "exec", "app", "wget", "-qO-", url); err != nil {
			return err
		}
	}

	if keep {
		step("It stays up. To explore it:")
		fmt.Printf(`  export DOCKER_HOST=%[1]s
  docker exec -it app sh                                      # then: wget -qO- %[2]s/metadata
  docker run -d --name late --network container:pause %[3]s sleep 1000   # shows up in the next answer
  nsenter --net=%[4]s ip -d link show                         # the bridge and the veth
  nsenter --net=%[4]s nft list ruleset                        # the guard
  tail -f %[5]s/resolver.log
To stop it and take it all away:
  kill %[6]d
`, h.Docker, base, image, h.Netns, h.Dir, h.Pid)
		return nil
	}
	step("The task is detached, and all of it is taken down")
	if err := h.sh(h.inside(append(attach, "del", network, netns)...)...); err != nil {
		return err
	}
	fmt.Println(`
Next: ` + "`make demo KEEP=1`" + ` leaves this host up and says how to look around; README.md says how
to install the plugins and the resolver on a host of your own.`)
	return nil
}

// configure writes the network's configuration, as an operator would in /etc/cni/net.d.
func (h *host) configure(pause string) error {
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": network,
		"plugins": []any{map[string]any{
			"type": "ecs-bridge",
			"ipam": map[string]any{"type": "ecs-ipam", "id": pause, "db-path": h.db()},
		}},
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	fmt.Printf("  %s:\n%s\n", h.conf(), indent(text))
	return os.WriteFile(h.conf(), text, 0o644)
}

func (h *host) conf() string { return filepath.Join(h.Dir, network+".conflist") }
func (h *host) db() string   { return filepath.Join(h.Dir, "bindings.db") }

// startResolver starts the resolver on the host and waits until it is ready.
func (h *host) startResolver(program string) error {
	log, err := os.Create(filepath.Join(h.Dir, "resolver.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	args := h.inside(program, "--db", h.db(), "--docker-host", h.Docker)
	fmt.Printf("  $ %s &\n", strings.Join(args, " "))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it belongs to the host, not to this terminal
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the resolver: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it ends with the host, which also says if it could not
	wait := h.inside("busybox", "timeout", "20", "busybox", "sh", "-c",
		"until busybox wget -qO- http://127.0.0.1:51680/readyz 2>/dev/null; do busybox usleep 50000; done")
	if err := exec.Command(wait[0], wait[1:]...).Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("waiting for the resolver: %w: %s", err, text)
	}
	return nil
}

// inside is the command that runs words in the host's network namespace.
func (h *host) inside(words ...string) []string {
	return append([]string{"nsenter", "--net=" + h.Netns, "env"}, words...)
}

// sh shows a command and what it prints, JSON made readable.
func (h *host) sh(words ...string) error {
	fmt.Printf("  $ %s\n", strings.Join(words, " "))
	out, err := h.output(words...)
	if text := strings.TrimSpace(out); text != "" {
		fmt.Println(indent([]byte(text)))
	}
	return err
}

func (h *host) output(words ...string) (string, error) {
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.Docker)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, complaint.String())
	}
	return out.String(), nil
}

// indent sets text off from the commands, and breaks it into lines if it is JSON.
func indent(text []byte) string {
	var pretty bytes.Buffer
	if json.Indent(&pretty, text, "", "  ") == nil {
		text = pretty.Bytes()
	}
	return "    " + strings.ReplaceAll(string(text), "\n", "\n    ")
}

var steps int

func step(title string) {
	steps++
	fmt.Printf("\n%d. %s\n", steps, title)
}
