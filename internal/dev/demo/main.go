// Demo shows taskmeta's main job on a host of its own: a network namespace with a Docker
// engine in it, an application of two tasks, and the resolver. Nothing of the machine's own
// network is touched, and nothing is left behind.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/netns"
)

func main() {
	keep := flag.Bool("keep", false, "leave the host up, to explore it")
	asHost := flag.Bool("host", false, "be the host: the demo starts itself so")
	flag.Parse()
	if *asHost {
		beHost()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := show(ctx, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const (
	image = "taskmeta-demo"
	base  = "http://169.254.170.2/v2"
	ask   = " wget -qO- " + base
)

// An app is a container of the demo.
type app struct {
	name, task, network string
	more                string // further words of docker run
}

// shop is the application: a task of two containers, and one of one.
var shop = []app{
	{name: "web", task: "web", network: "none", more: " --memory 64m --cpu-shares 256"},
	{name: "web-log", task: "web", network: "container:web"},
	{name: "worker", task: "worker", network: "none"},
}

func arn(task string) string {
	return "arn:aws:ecs:us-west-2:123456789012:task/shop/" + task
}

// show plays the demo from its first step to its last.
func show(ctx context.Context, keep bool) (err error) {
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
	fmt.Printf(`  network namespace  %s
  DOCKER_HOST        %s
  IPAM_DB_PATH       %s
  What follows runs there.
`, h.Netns, h.Docker, h.db())

	step("The resolver runs, and attaches every container that starts with a task's label")
	fmt.Println("  $ ecs-resolver serve --auto-attach &")
	if err := h.sh(ctx, "ecs-resolver status"); err != nil {
		return err
	}
	if err := h.application(ctx); err != nil {
		return err
	}
	if err := h.operator(ctx); err != nil {
		return err
	}
	if keep {
		h.invite()
		return nil
	}
	return h.end(ctx)
}

// application starts the application, whose containers ask who they are.
func (h *host) application(ctx context.Context) error {
	step("An application starts: the task web of two containers, the task worker of one")
	for _, a := range shop {
		err := h.sh(ctx, "docker run --detach --name "+a.name+" --network "+a.network+
			" --label com.amazonaws.ecs.task-arn="+arn(a.task)+
			" --label com.amazonaws.ecs.cluster=shop"+
			" --label com.amazonaws.ecs.task-definition-family="+a.task+
			" --label com.amazonaws.ecs.task-definition-version=7"+
			" --label com.amazonaws.ecs.container-name="+a.name+
			a.more+" "+image+" sleep 100000")
		if err != nil {
			return err
		}
	}
	if err := h.await(ctx, "docker exec web"+ask+"/metadata", "docker exec worker"+ask+"/metadata"); err != nil {
		return err
	}

	step("Each container asks who it is, and is told of its own task")
	if err := h.sh(ctx, "docker exec web-log"+ask+"/metadata", "docker exec worker"+ask+"/metadata"); err != nil {
		return err
	}

	step("... and of no other: the worker does not exist for web")
	worker, err := h.output(ctx, "docker inspect --format {{.Id}} worker")
	if err != nil {
		return err
	}
	worker = strings.TrimSpace(worker)
	if err := h.sh(ctx, "docker exec worker"+ask+"/metadata/"+worker); err != nil {
		return err
	}
	if err := h.refused(ctx, "docker exec web"+ask+"/metadata/"+worker); err != nil {
		return err
	}

	step("Statistics are Docker's own, with the task's network interfaces")
	return h.sh(ctx, "docker exec web"+ask+"/stats/web-log")
}

// operator shows what an operator sees and does.
func (h *host) operator(ctx context.Context) error {
	step("The operator sees who has which address")
	if err := h.sh(ctx, "ecs-resolver bindings"); err != nil {
		return err
	}
	step("A container without the label is attached by hand, and detached")
	return h.sh(ctx,
		"docker run --detach --name tool --network none "+image+" sleep 100000",
		"ecs-resolver attach tool",
		"docker exec tool"+ask+"/metadata/tool",
		"ecs-resolver detach tool")
}

// invite says how to explore a host that stays up.
func (h *host) invite() {
	step("It stays up. To explore it:")
	fmt.Printf(`  export DOCKER_HOST=%[1]s IPAM_DB_PATH=%[2]s
  docker exec -it web sh                                  # then: wget -qO- %[3]s/metadata
  docker run -d --network container:web %[4]s sleep 1000  # is in the next answer to web
  on() { nsenter --net=%[5]s env PATH=%[6]s:$PATH "$@"; }
  on ecs-resolver bindings
  nsenter --net=%[9]s ip -d link show                      # the bridge and the veth pairs
  nsenter --net=%[9]s nft list ruleset                     # the guard
  on busybox wget -qO- http://127.0.0.1:51680/status.json # what the status page shows
  tail -f %[7]s
To stop it and take it all away:
  kill %[8]d
`, h.Docker, h.db(), base, image, h.Netns, h.Bin, h.log(), h.Pid, netns.PinPath(h.db()))
}

// end ends the application.
func (h *host) end(ctx context.Context) error {
	step("The containers end, and their addresses are free")
	if err := h.sh(ctx, "docker rm --force web web-log worker tool"); err != nil {
		return err
	}
	err := testnet.Until(ctx, "the addresses to be free", func() error {
		out, err := h.output(ctx, "ecs-resolver bindings")
		if err == nil && !strings.Contains(out, "no address") {
			err = fmt.Errorf("held: %s", out)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := h.sh(ctx, "ecs-resolver bindings"); err != nil {
		return err
	}
	fmt.Println(`
All of it is taken down. Next: ` + "`make demo KEEP=1`" + ` leaves this host up and says how to look
around; docs/quickstart.md says how to have it on a host of your own.`)
	return nil
}

// command is one that runs in the host's network namespace, with its daemon and its
// bindings file.
func (h *host) command(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.Netns, "env"}, strings.Fields(line)...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.Docker, "IPAM_DB_PATH="+h.db(), "PATH="+h.Bin+":"+os.Getenv("PATH"))
	return cmd
}

// sh shows commands and what they print, JSON made readable.
func (h *host) sh(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		fmt.Printf("  $ %s\n", strings.ReplaceAll(line, " --label", " \\\n      --label"))
		out, err := h.output(ctx, line)
		if text := strings.TrimSpace(out); text != "" {
			fmt.Println(indent([]byte(text)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refused shows a command that has to fail, and its complaint.
func (h *host) refused(ctx context.Context, line string) error {
	fmt.Printf("  $ %s\n", line)
	out, err := h.command(ctx, line).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		return fmt.Errorf("%s: it was not refused (%w): %s", line, err, out)
	}
	fmt.Println(indent(bytes.TrimSpace(out)))
	return context.Cause(ctx)
}

// await runs each command until it succeeds.
func (h *host) await(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		err := testnet.Until(ctx, line, func() error {
			_, err := h.output(ctx, line)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *host) output(ctx context.Context, line string) (string, error) {
	cmd := h.command(ctx, line)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return out.String(), fmt.Errorf("%s: %w: %s", line, err, complaint.String())
	}
	return out.String(), nil
}

// longest is how many lines of an answer are shown.
const longest = 40

// indent sets text off from the commands, breaks it into lines if it is JSON, and leaves
// out the end of what is long.
func indent(text []byte) string {
	var pretty bytes.Buffer
	if json.Indent(&pretty, text, "", "  ") == nil {
		text = pretty.Bytes()
	}
	lines := strings.Split(string(text), "\n")
	if more := len(lines) - longest; more > 0 {
		lines = append(lines[:longest], fmt.Sprintf("... and %d more lines", more))
	}
	return "    " + strings.Join(lines, "\n    ")
}

var steps int

func step(title string) {
	steps++
	fmt.Printf("\n%d. %s\n", steps, title)
}
