package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// manCommand is for who makes packages: it writes the manual pages that the commands'
// own help amounts to. Their date is SOURCE_DATE_EPOCH, or now.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIRECTORY",
		Short:   "Write the manual pages into a directory",
		Example: "  ecs-resolver man /usr/local/share/man/man8",
		Args:    usage(one("DIRECTORY")),
		Hidden:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			plainUsage(root)
			header := &doc.GenManHeader{Section: "8", Source: "taskmeta " + version, Manual: "System Manager's Manual"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("writing manual pages to %s: %w", args[0], err)
			}
			return nil
		},
	}
}

// plainUsage takes the words for values out of the flags' usage, which the manual pages
// have no place for.
func plainUsage(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { _, f.Usage = usageOf(f) })
	cmd.PersistentFlags().VisitAll(func(f *pflag.Flag) { _, f.Usage = usageOf(f) })
	for _, c := range cmd.Commands() {
		plainUsage(c)
	}
}
