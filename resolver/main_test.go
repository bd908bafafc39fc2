package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// runs runs a command line in this process.
func runs(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, complaint bytes.Buffer
	code = run(t.Context(), args, &out, &complaint)
	return code, out.String(), complaint.String()
}

// A screen is a terminal as it opens, its last line for the next command.
const (
	screenLines   = 24
	screenColumns = 80
	// serveLines are those of a window that is worked in: serve has more flags than a terminal
	// has lines as it opens.
	serveLines = 40
)

func TestHelpFitsAScreen(t *testing.T) {
	t.Setenv("IPAM_DB_PATH", "")
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		words := strings.Fields(c.CommandPath())[1:]
		code, help, _ := runs(t, append(words, "--help")...)
		lines := strings.Split(strings.TrimSuffix(help, "\n"), "\n")
		most := screenLines
		if c.Name() == "serve" {
			most = serveLines
		}
		if code != 0 || len(lines) >= most {
			t.Errorf("%s --help: exit code %d, %d lines; want fewer than %d", c.CommandPath(), code, len(lines), most)
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > screenColumns {
				t.Errorf("%s --help: a line of %d columns, want %d at most: %s", c.CommandPath(), n, screenColumns, line)
			}
		}
		if !strings.Contains(help, "\nExample:  ecs-resolver") && !strings.Contains(help, "\nExample:  source") {
			t.Errorf("%s --help has no example:\n%s", c.CommandPath(), help)
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(command())
}

func TestHelpNamesEveryFlagAndCommand(t *testing.T) {
	t.Parallel()
	_, help, _ := runs(t, "serve", "--help")
	for _, flag := range []string{"--db", "--listen", "--bridge", "--admin", "--docker-host", "--auto-attach", "--cni-path", "--instance-tag KEY=VALUE"} {
		if !strings.Contains(help, "\n  "+flag+" ") {
			t.Errorf("serve --help does not have %s:\n%s", flag, help)
		}
	}
	_, help, _ = runs(t, "--help")
	for _, name := range []string{"attach", "bindings", "completion", "detach", "serve", "status", "version"} {
		if !strings.Contains(help, "\n  "+name+" ") {
			t.Errorf("--help does not have %s:\n%s", name, help)
		}
	}
}

// The help has room for a line on a flag; the manual and the README say all of it.
func TestManualHasEveryFlag(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// It fails if it has no text for a flag.
	if out, err := exec.Command("go", "run", "-tags", "man", ".", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	page, err := os.ReadFile(filepath.Join(dir, "ecs-resolver-serve.8"))
	if err != nil || !strings.Contains(string(page), "a socket that only root opens") {
		t.Errorf("the manual page of serve is short (%v)", err)
	}
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(string(page), `\fB--`+f.Name+`\fP`) {
			t.Errorf("the manual page of serve has nothing on --%s", f.Name)
		}
	})
}

func TestReadmeHasEveryFlag(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(string(readme), "`--"+f.Name) {
			t.Errorf("README.md does not have --%s", f.Name)
		}
	})
}

// A mistake in the words or the environment is exit code 2 and an error that names what
// was given, and says what was expected or where to read on.
func TestUsageErrors(t *testing.T) {
	tests := map[string]struct {
		args []string
		env  string
		says []string
	}{
		"no such command":          {args: []string{"atach"}, says: []string{`"atach"`, "--help"}},
		"no such flag":             {args: []string{"serve", "--lisen", "x"}, says: []string{"--lisen", "ecs-resolver serve --help"}},
		"no such flag of attach":   {args: []string{"attach", "web", "--rate", "3"}, says: []string{"--rate", "ecs-resolver attach --help"}},
		"a container too few":      {args: []string{"attach"}, says: []string{"CONTAINER", "ecs-resolver attach --help"}},
		"a container too many":     {args: []string{"detach", "a", "b"}, says: []string{"CONTAINER", "ecs-resolver detach --help"}},
		"a word too many":          {args: []string{"status", "now"}, says: []string{`"now"`, "ecs-resolver status --help"}},
		"no number":                {args: []string{"--rate", "many"}, says: []string{`"many"`, "--rate"}},
		"a rate below 0":           {args: []string{"--rate", "-1"}, says: []string{"--rate -1", "above 0"}},
		"a rate without a burst":   {args: []string{"--burst", "0"}, says: []string{"--burst 0", "above 0"}},
		"no such guard":            {args: []string{"--guard", "lax"}, says: []string{"--guard", "lax", "strict"}},
		"no such witness":          {args: []string{"--witness", "maybe"}, says: []string{`--witness "maybe"`, "require"}},
		"no such format":           {args: []string{"--log-format", "xml"}, says: []string{`--log-format "xml"`, "json"}},
		"no such level":            {args: []string{"--log-level", "loud"}, says: []string{"--log-level", "loud"}},
		"no address to listen on":  {args: []string{"--bridge", "none", "--witness", "off", "--listen", "web:80"}, says: []string{"--listen web:80", "169.254.170.2:80"}},
		"no descriptor":            {args: []string{"--bridge", "none", "--witness", "off", "--listen", "fd:x"}, says: []string{"--listen fd:x", "fd:3"}},
		"a page for the network":   {args: []string{"--bridge", "none", "--witness", "off", "--listen", "127.0.0.1:0", "--admin", "0.0.0.0:80"}, says: []string{"--admin 0.0.0.0:80", "loopback"}},
		"a tag without a value":    {args: []string{"--instance-tag", "team"}, says: []string{"team", "--instance-tag"}},
		"status of no address":     {args: []string{"status", "--admin", "page"}, says: []string{`--admin "page"`, "unix:PATH"}},
		"no address to show":       {args: []string{"bindings", "show", "web"}, says: []string{`"web"`, "169.254.172.2"}},
		"a wrong variable":         {env: "TASKMETA_RATE=many", args: []string{"serve"}, says: []string{`TASKMETA_RATE="many"`}},
		"a wrong variable, status": {env: "TASKMETA_JSON=perhaps", args: []string{"status"}, says: []string{`TASKMETA_JSON="perhaps"`}},
		"a variable without sense": {env: "TASKMETA_WITNESS=maybe", args: []string{}, says: []string{`"maybe"`, "require"}},
		"no Docker URL":            {args: []string{"attach", "web", "--docker-host", "here"}, says: []string{"--docker-host", `"here"`, "unix:///"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("IPAM_DB_PATH", filepath.Join(t.TempDir(), "bindings.db"))
			if key, value, ok := strings.Cut(test.env, "="); ok {
				t.Setenv(key, value)
			}
			code, stdout, stderr := runs(t, test.args...)
			if code != exitUsage || stdout != "" {
				t.Errorf("exit code %d, want %d; stdout %q", code, exitUsage, stdout)
			}
			if !strings.HasPrefix(stderr, "ecs-resolver: ") || strings.Count(stderr, "\n") != 1 {
				t.Errorf("want one line of the program's: %s", stderr)
			}
			for _, want := range test.says {
				if !strings.Contains(stderr, want) {
					t.Errorf("it does not say %s: %s", want, stderr)
				}
			}
		})
	}
}

// What fails though it was asked for rightly is exit code 1, and says what to do.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	none := "unix://" + filepath.Join(dir, "docker.sock")
	damaged := filepath.Join(dir, "damaged.db")
	if err := os.WriteFile(damaged, []byte("no bindings file"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	page, err := net.Listen("unix", filepath.Join(dir, "page"))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	serve := []string{"serve", "--bridge", "none", "--witness", "off"}
	tests := map[string]struct {
		args []string
		says []string
	}{
		"a port that is taken":    {args: slices.Concat(serve, []string{"--listen", taken.Addr().String()}), says: []string{"--listen " + taken.Addr().String(), "in use", "choose another"}},
		"an address of others":    {args: slices.Concat(serve, []string{"--listen", "203.0.113.9:80"}), says: []string{"--listen 203.0.113.9:80", "no interface"}},
		"a socket not passed":     {args: slices.Concat(serve, []string{"--listen", "fd:987"}), says: []string{"--listen fd:987", "no open socket"}},
		"a page that is taken":    {args: slices.Concat(serve, []string{"--listen", "127.0.0.1:0", "--admin", "unix:" + page.Addr().String()}), says: []string{"--admin unix:" + page.Addr().String(), "choose another"}},
		"no daemon to attach by":  {args: []string{"attach", "web", "--docker-host", none}, says: []string{none, "start it", "--docker-host"}},
		"no daemon to detach by":  {args: []string{"detach", "web", "--docker-host", none}, says: []string{none, "--docker-host"}},
		"no such network":         {args: []string{"attach", "web", "--network", "mine", "--net-dir", dir}, says: []string{`"mine"`, dir, ".conflist"}},
		"no folder of networks":   {args: []string{"attach", "web", "--network", "mine", "--net-dir", dir + "/none"}, says: []string{`"mine"`, dir + "/none"}},
		"nothing has the address": {args: []string{"bindings", "show", "169.254.172.9"}, says: []string{"169.254.172.9", "ecs-resolver bindings"}},
		"a damaged file":          {args: []string{"bindings", "--db", damaged}, says: []string{damaged, "ecs-resolver bindings repair"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("IPAM_DB_PATH", filepath.Join(dir, "bindings.db"))
			code, _, stderr := runs(t, test.args...)
			if code != exitFailed {
				t.Errorf("exit code %d, want %d", code, exitFailed)
			}
			for _, want := range test.says {
				if !strings.Contains(stderr, want) {
					t.Errorf("it does not say %s: %s", want, stderr)
				}
			}
		})
	}
}

func TestEmptyFileOfBindings(t *testing.T) {
	t.Setenv("IPAM_DB_PATH", filepath.Join(t.TempDir(), "bindings.db"))
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	if code, out, _ := runs(t, "bindings"); code != 0 || out != "no address is held\n" {
		t.Errorf("bindings: exit code %d, %q", code, out)
	}
	if code, out, _ := runs(t, "bindings", "list", "--json"); code != 0 || out != "[]\n" {
		t.Errorf("bindings list --json: exit code %d, %q; want an empty array", code, out)
	}
}
