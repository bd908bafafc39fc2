package main

import (
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What --help prints of a command: all of it on one screen, with a line for each flag. The
// manual pages have more room. The program's own flags are those of serve.
const (
	helpTemplate = `{{or .Long (print .Short ".")}}

{{.UsageString}}`

	usageTemplate = `Usage:    {{.UseLine}}
{{if .HasExample}}Example:{{examples .}}
{{end}}{{if .HasAvailableSubCommands}}Commands:
{{range .Commands}}{{if .IsAvailableCommand}}  {{rpad .Name .NamePadding}} {{.Short}}
{{end}}{{end}}{{end}}{{if .HasParent}}{{flags .}}{{end}}`
)

func init() {
	cobra.AddTemplateFuncs(template.FuncMap{"examples": examples, "flags": flagLines})
}

// examples are a command's, each below the other.
func examples(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.Example, "\n", "\n        ")
}

// flagLines are pflag's lines, without the room that they leave for names of one letter: only
// --help has one, and is left out.
func flagLines(cmd *cobra.Command) string {
	var all pflag.FlagSet
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			all.AddFlag(f)
		}
	})
	if !all.HasAvailableFlags() {
		return ""
	}
	return "Flags:" + strings.ReplaceAll("\n"+all.FlagUsages(), "\n      --", "\n  --")
}

// shortHelp gives the commands that cobra adds an example, and words that fit a screen.
func shortHelp(root *cobra.Command) {
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(usageTemplate)
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
}

var completionExample = map[string]string{
	"bash":       "  source <(ecs-resolver completion bash)",
	"zsh":        `  ecs-resolver completion zsh >"${fpath[1]}/_ecs-resolver"`,
	"fish":       "  ecs-resolver completion fish | source",
	"powershell": "  ecs-resolver completion powershell | Out-String | Invoke-Expression",
}
