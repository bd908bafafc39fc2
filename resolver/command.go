package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "unknown"

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// A usageError is the caller's mistake: its words, not the work, have to change.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run runs the command that args name, tells what went wrong, and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "ecs-resolver:", advised(err))
	if errors.As(err, new(usageError)) {
		return exitUsage
	}
	return exitFailed
}

// advised adds what to do to those errors of the system that do not say it.
func advised(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return fmt.Errorf("%w: this needs root", err)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: another program has that port (`ss -antp` names it): end it, or choose another address", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: no interface of this host has the address: choose one of `ip address`", err)
	case errors.Is(err, syscall.EBADF):
		return fmt.Errorf("%w: no open socket has that number: leave the flag out, or have the caller pass one", err)
	}
	return err
}

// command is the whole command line. Without a command's name it serves.
func command() *cobra.Command {
	serve := serveCommand()
	root := &cobra.Command{
		Use:   "ecs-resolver [COMMAND]",
		Short: "Answer the containers of a task at http://169.254.170.2/v2/metadata",
		Long: `ecs-resolver answers the containers of a task that ask who they are, at
http://169.254.170.2/v2/metadata. Without a command it serves.

Each flag is an environment variable too: --docker-host is TASKMETA_DOCKER_HOST.
Exit codes: 0, 1 (failed), 2 (the command line or the environment is wrong).`,
		Example:       serve.Example,
		Args:          usage(cobra.NoArgs),
		RunE:          serve.RunE,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.Flags().AddFlagSet(serve.Flags())
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		return fromEnvironment(cmd.Flags())
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(serve, attachCommand(), detachCommand(), bindingsCommand(), statusCommand(), netnsCommand(), removeCommand(), versionCommand())
	shortHelp(root)
	return root
}

// one demands one word, which is named as in the command's usage line.
func one(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("expected one %s, got %d words", name, len(args))
		}
		return nil
	}
}

// usage makes the complaint of an argument check a usage error.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
}

// fromEnvironment sets the flags that the command line leaves out and the environment
// names.
func fromEnvironment(flags *pflag.FlagSet) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		value, ok := os.LookupEnv(name)
		if !ok || f.Changed || err != nil {
			return
		}
		if e := flags.Set(f.Name, value); e != nil {
			err = usageError{fmt.Errorf("environment variable %s=%q: %w", name, value, e)}
		}
	})
	return err
}

// envName is the environment variable that stands for a flag.
func envName(flag string) string {
	return "TASKMETA_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  ecs-resolver version",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "ecs-resolver", version)
			return err
		},
	}
}
