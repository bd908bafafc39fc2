package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/endpoint"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// endTime is what a resolver is given to end: more than it gives the answers under way.
const endTime = 30 * time.Second

func removeCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Take away all that taskmeta has made on this host",
		Long: `Remove ends the resolvers of this host and removes all that they and the plugins
have made: the tasks' interfaces, bridges, nftables tables, routing rules, the
endpoint's network namespace, the bindings file and the files beside it.
Containers run on, without the endpoint. A bridge that somebody else made stays,
without taskmeta's ports and addresses. It prints what it removes.`,
		Example: "  ecs-resolver remove",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*commandTime)
			defer cancel()
			return remove(ctx, &f, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&f.db, "db", defaultDB(), "bindings `FILE`")
	f.netnsFlag(cmd.Flags())
	return cmd
}

// remove removes everything, and says of each thing that it is removed. A failure does not
// keep the rest from being removed.
func remove(ctx context.Context, f *flags, out io.Writer) error {
	f.bridge = guard.DefaultBridge // so that the pin's path is known
	pin, err := f.pin()
	if err != nil {
		return err
	}
	pins := []string{netns.PinPath(f.db)}
	if pin != "" && pin != pins[0] {
		pins = append(pins, pin)
	}
	count := 0
	say := func(what string) {
		count++
		fmt.Fprintln(out, "removed", what)
	}
	own, err := netns.Own()
	if err != nil {
		return err
	}
	if err := endResolvers(ctx, own, out); err != nil {
		return err // it would make all of it again
	}
	all, unread := readBindings(f.db)
	err = removeIn(own, all, say)
	for _, path := range pins {
		err = errors.Join(err, removePinned(path, own, all, say))
	}
	if err == nil { // else what is left is found by the files another time
		err = removeFiles(out, f.db, all, unread, say)
	}
	err = errors.Join(err, removePin(pins[0], say))
	err = errors.Join(err, removeDir(f.db, say))
	left, e := resolvers(own)
	if e == nil && len(left) > 0 {
		e = fmt.Errorf("a resolver was started again meanwhile (process %d): end what starts it, such as a restart policy of Docker's, and remove once more", left[0])
	}
	if err = errors.Join(err, e); err == nil && count == 0 {
		fmt.Fprintln(out, "nothing to remove: there is nothing of taskmeta's on this host")
	}
	return err
}

// removeIn removes what stands in a network namespace.
func removeIn(ns *netns.NS, all []*ecs.Binding, say func(string)) error {
	host, err := link.Open(ns)
	if err != nil {
		return err
	}
	defer host.Close()
	return endpoint.Remove(host, all, say)
}

// removePinned removes what stands in a namespace that is mounted at path, if there is one
// other than the host's.
func removePinned(path string, own *netns.NS, all []*ecs.Binding, say func(string)) error {
	ns, err := netns.Pinned(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if ns.ID() != own.ID() {
		err = removeIn(ns, all, say)
	}
	return errors.Join(err, ns.Close())
}

// removePin removes the namespace that stands beside the bindings file. One that --netns names
// elsewhere may be an administrator's, and stays, empty.
func removePin(path string, say func(string)) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := netns.Unpin(path)
	if err == nil {
		say("network namespace " + path)
	}
	return err
}

// endResolvers ends the resolvers that serve on this host, by systemd where they are its
// units.
func endResolvers(ctx context.Context, own *netns.NS, out io.Writer) error {
	if err := stopUnits(ctx, own); err != nil {
		return err
	}
	pids, err := resolvers(own)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		fmt.Fprintf(out, "ending the resolver that runs as process %d\n", pid)
		if err := end(ctx, pid); err != nil {
			return fmt.Errorf("ending the resolver that runs as process %d: %w", pid, err)
		}
	}
	return nil
}

// stopUnits stops the units of the package, if systemd runs this host. A socket would start
// the service again.
func stopUnits(ctx context.Context, own *netns.NS) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil
	}
	if first, err := netns.Identify(netns.Path(1)); err != nil || first != own.ID() {
		return nil // this is a host within the host
	}
	stop := exec.CommandContext(ctx, "systemctl", "stop", "ecs-resolver*")
	if said, err := stop.CombinedOutput(); err != nil {
		return fmt.Errorf("stopping the units of ecs-resolver: %w: %s", err, bytes.TrimSpace(said))
	}
	return nil
}

// resolvers are the processes of this host's network that serve.
func resolvers(own *netns.NS) (pids []int, err error) {
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		program, err := os.Readlink(exe)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
		if err != nil || pid == os.Getpid() || filepath.Base(strings.TrimSuffix(program, " (deleted)")) != "ecs-resolver" {
			continue // or it has ended
		}
		if id, err := netns.Identify(netns.Path(pid)); err != nil || id != own.ID() {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(exe), "cmdline"))
		if words := strings.Split(string(line), "\x00"); err == nil && serves(words[1:]) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, err
}

// serves reports whether the words of a command line are those of a resolver that serves.
func serves(words []string) bool {
	return len(words) == 0 || words[0] == "" || words[0] == "serve" || strings.HasPrefix(words[0], "-")
}

// end has a process end, and waits for it.
func end(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	for {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		switch n, err := unix.Poll(ready, 100); { // ms
		case err != nil && !errors.Is(err, unix.EINTR):
			return os.NewSyscallError("poll", err)
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("it does not end: %w", context.Cause(ctx))
		}
	}
}
