package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A screen is what help has to fit: that of a terminal as it opens.
const (
	screenLines   = 24
	screenColumns = 80
)

// helpText is what --help prints of a command: all of it on one screen, with a line for
// each flag. The manual pages have more room.
func helpText(cmd *cobra.Command) string {
	var b strings.Builder
	about := cmd.Long
	if about == "" {
		about = cmd.Short + "."
	}
	fmt.Fprintf(&b, "%s\n\nUsage:    %s\n", about, usageLine(cmd))
	if cmd.Example != "" {
		fmt.Fprintf(&b, "Example:  %s\n", strings.ReplaceAll(strings.TrimSpace(cmd.Example), "\n  ", "\n          "))
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("Commands:\n")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				fmt.Fprintf(&b, "  %-12s%s\n", c.Name(), c.Short)
			}
		}
	}
	if cmd.HasParent() && cmd.HasAvailableFlags() { // the program's own flags are those of serve
		b.WriteString(flagLines(cmd))
	}
	return b.String()
}

func usageLine(cmd *cobra.Command) string {
	if cmd.HasParent() {
		return cmd.UseLine()
	}
	return cmd.Name() + " [COMMAND] [flags]"
}

// flagLines is a line for each flag: its name, what it takes, what it means, its default.
func flagLines(cmd *cobra.Command) string {
	var names, texts []string
	width := 0
	add := func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, text := usageOf(f)
		name := strings.TrimSpace("--" + f.Name + " " + value)
		switch f.DefValue {
		case "", "[]", "false":
		default:
			text += " (" + strings.Trim(f.DefValue, "[]") + ")"
		}
		names, texts = append(names, name), append(texts, text)
		width = max(width, len(name))
	}
	cmd.LocalFlags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	var b strings.Builder
	if len(names) > 0 {
		b.WriteString("Flags:\n")
	}
	for i, name := range names {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, name, texts[i])
	}
	return b.String()
}

// usageOf splits a flag's usage into the word for its value and what it is.
func usageOf(f *pflag.Flag) (value, text string) {
	if rest, ok := strings.CutPrefix(f.Usage, "`"); ok {
		value, text, _ = strings.Cut(rest, "` ")
		return value, text
	}
	return "", f.Usage
}

// shortHelp gives the commands that cobra adds an example, and words that fit a screen.
func shortHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Long, c.Example = "Help shows what a command does, as its --help does.", "  ecs-resolver help attach"
		case "completion":
			c.Short = "Print a script with which a shell completes words"
			c.Long, c.Example = "Completion prints a script with which a shell completes this command's words.",
				"  source <(ecs-resolver completion bash)"
			for _, shell := range c.Commands() {
				shell.Long = "Prints the script for " + shell.Name() + ". The Debian package installs that for bash."
				shell.Example = completionExample[shell.Name()]
			}
		}
	}
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		cmd.InitDefaultHelpFlag()
		fmt.Fprint(cmd.OutOrStdout(), helpText(cmd))
	})
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		_, err := fmt.Fprint(cmd.OutOrStderr(), helpText(cmd))
		return err
	})
}

var completionExample = map[string]string{
	"bash":       "  source <(ecs-resolver completion bash)",
	"zsh":        `  ecs-resolver completion zsh >"${fpath[1]}/_ecs-resolver"`,
	"fish":       "  ecs-resolver completion fish | source",
	"powershell": "  ecs-resolver completion powershell | Out-String | Invoke-Expression",
}
