package cniedge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/rogpeppe/go-internal/testscript"

	"taskmeta/internal/ecs"
)

// The test binary is a plugin as well, whose verbs show what a test needs.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each process under the race detector sleeps for a second
	testscript.Main(m, map[string]func(){"plugin": func() {
		Main(Plugin{
			Name: "plugin", Version: "1", Help: "a plugin",
			Add: func(context.Context, *Request) (*current.Result, error) { return &current.Result{}, nil },
			Del: func(context.Context, *Request) error { panic("out of range") },
			Check: func(_ context.Context, r *Request) error {
				return fmt.Errorf("%w for %s", ecs.ErrNoBinding, r.Attachment)
			},
			GC:     func(context.Context, *Request) error { return errors.New("not tried") },
			Status: func(context.Context, *Request) error { return ecs.ErrDamaged },
		})
	}})
}

func command(verb, netns string) *exec.Cmd {
	cmd := exec.Command("plugin")
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS="+netns, "CNI_PATH=/opt/cni/bin")
	cmd.Stdin = strings.NewReader(`{"cniVersion": "1.1.0", "name": "net"}`)
	return cmd
}

func TestFailuresAreJSON(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		verb, netns string
		want        types.Error
	}{
		"a panic":                   {"DEL", "", types.Error{Code: 999, Msg: "DEL of c1/eth0 in network net", Details: "panic, which is a bug in the plugin: out of range"}},
		"an error of the domain":    {"CHECK", "/run/netns/c1", types.Error{Code: 103, Msg: "CHECK of c1/eth0 in network net", Details: "no binding for c1/eth0 in network net"}},
		"STATUS that can't":         {"STATUS", "", types.Error{Code: 50, Msg: "STATUS of c1/eth0 in network net", Details: "the bindings file is damaged"}},
		"the plugin's own netns":    {"ADD", "/proc/self/ns/net", types.Error{Code: 8, Msg: "ADD of c1/eth0 in network net", Details: `CNI_NETNS is "/proc/self/ns/net", which is the plugin's own network namespace: expected the task's`}},
		"a verb that is not known":  {"ADDD", "", types.Error{Code: 4, Msg: `CNI_COMMAND is "ADDD": expected ADD, DEL, CHECK, GC, STATUS or VERSION`}},
		"a variable that is missed": {"ADD", "", types.Error{Code: 4, Msg: `CNI_NETNS is "": expected the path of the task's network namespace`}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := command(test.verb, test.netns).Output()
			exit := (*exec.ExitError)(nil)
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("exit: %v, want 1", err)
			}
			var got types.Error
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%q: %v", out, err)
			}
			if got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestCodes(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		err  error
		want uint
	}{
		"busy":             {ecs.ErrBusy, 11},
		"pool full":        {ecs.ErrPoolFull, 100},
		"held":             {ecs.ErrHeld, 101},
		"taken":            {ecs.ErrAddrTaken, 102},
		"no binding":       {ecs.ErrNoBinding, 103},
		"damaged":          {ecs.ErrDamaged, 104},
		"newer":            {ecs.ErrNewerSchema, 105},
		"a bad key":        {BadKey("mtu", json.RawMessage("-1"), "a number"), 7},
		"a bad variable":   {BadEnv("CNI_ARGS", "x", "pairs"), 4},
		"input and output": {&fs.PathError{Op: "open", Path: "/run/x", Err: fs.ErrPermission}, 5},
		"a delegate's":     {types.NewError(50, "no", ""), 50},
		"anything else":    {errors.New("x"), 999},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *types.Error
			err := Error("ADD", fmt.Errorf("the first step: %w", test.err))
			if !errors.As(err, &got) || got.Code != test.want || !strings.HasPrefix(got.Details, "the first step: ") {
				t.Errorf("%v, want code %d", got, test.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	good := map[string]string{"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/c1", "CNI_PATH": "/opt/cni/bin"}
	tests := map[string]struct{ verb, name, value, problem string }{
		"all of it":                    {verb: "ADD"},
		"no container":                 {"ADD", "CNI_CONTAINERID", "", `CNI_CONTAINERID is "": expected the ID of a container`},
		"a container's path":           {"DEL", "CNI_CONTAINERID", "../c1", "letters, digits"},
		"a container with a dash":      {verb: "CHECK", name: "CNI_CONTAINERID", value: "c-1_A.z"},
		"a dash before all":            {"CHECK", "CNI_CONTAINERID", "-c1", "of which the first is a letter"},
		"an interface of 16 bytes":     {"ADD", "CNI_IFNAME", "eth0123456789012", "1 to 15 bytes"},
		"an interface of 15 bytes":     {verb: "ADD", name: "CNI_IFNAME", value: "eth012345678901"},
		"an interface with a slash":    {"DEL", "CNI_IFNAME", "a/b", "1 to 15 bytes"},
		"an interface named ..":        {"DEL", "CNI_IFNAME", "..", "not . or .."},
		"an interface with a space":    {"DEL", "CNI_IFNAME", "a b", "without /, : and space"},
		"DEL of a namespace that went": {verb: "DEL", name: "CNI_NETNS"},
		"CHECK without a namespace":    {"CHECK", "CNI_NETNS", "", "CNI_NETNS"},
		"no path":                      {"GC", "CNI_PATH", "", "CNI_PATH"},
		"GC of no container":           {verb: "GC", name: "CNI_CONTAINERID"},
		"STATUS of no interface":       {verb: "STATUS", name: "CNI_IFNAME"},
		"a verb in small letters":      {"add", "", "", "CNI_COMMAND"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for name, value := range good {
				t.Setenv(name, value)
			}
			if test.name != "" {
				t.Setenv(test.name, test.value)
			}
			var r *Request
			needs, err := needsOf(test.verb)
			if err == nil {
				r, err = fromEnvironment(needs, 0)
			}
			switch {
			case test.problem == "" && (err != nil || r.Path != good["CNI_PATH"]):
				t.Errorf("refused: %v", err)
			case test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem) || code(err) != types.ErrInvalidEnvironmentVariables):
				t.Errorf("%v, want one of the environment that says %s", err, test.problem)
			}
		})
	}
}

func TestConfigEverywhere(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		verb, config string
		want         uint
	}{
		"all there":              {"ADD", `{"cniVersion": "0.3.0", "name": "net"}`, 0},
		"no JSON":                {"ADD", `{`, types.ErrDecodingFailure},
		"no object":              {"ADD", `[]`, types.ErrDecodingFailure},
		"no version":             {"ADD", `{"name": "net"}`, types.ErrIncompatibleCNIVersion},
		"a version before ours":  {"DEL", `{"cniVersion": "0.2.0", "name": "net"}`, types.ErrIncompatibleCNIVersion},
		"a version to come":      {"DEL", `{"cniVersion": "1.2.0", "name": "net"}`, types.ErrIncompatibleCNIVersion},
		"CHECK before it was":    {"CHECK", `{"cniVersion": "0.3.1", "name": "net"}`, types.ErrIncompatibleCNIVersion},
		"CHECK in its first":     {"CHECK", `{"cniVersion": "0.4.0", "name": "net"}`, 0},
		"GC before it was":       {"GC", `{"cniVersion": "1.0.0", "name": "net"}`, types.ErrIncompatibleCNIVersion},
		"STATUS in its first":    {"STATUS", `{"cniVersion": "1.1.0", "name": "net"}`, 0},
		"a version as a number":  {"ADD", `{"cniVersion": 1.1, "name": "net"}`, types.ErrIncompatibleCNIVersion},
		"no name":                {"ADD", `{"cniVersion": "1.1.0"}`, types.ErrInvalidNetworkConfig},
		"an empty name":          {"ADD", `{"cniVersion": "1.1.0", "name": ""}`, types.ErrInvalidNetworkConfig},
		"a name with a space":    {"ADD", `{"cniVersion": "1.1.0", "name": "a net"}`, types.ErrInvalidNetworkConfig},
		"a name that is no text": {"ADD", `{"cniVersion": "1.1.0", "name": null}`, types.ErrInvalidNetworkConfig},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needs, err := needsOf(test.verb)
			if err == nil {
				err = (&Request{Config: []byte(test.config)}).readConfig(needs)
			}
			if test.want == 0 && err != nil || test.want != 0 && (err == nil || code(err) != test.want) {
				t.Errorf("%v, want the code %d", err, test.want)
			}
		})
	}
}

func prevResult(value string) map[string]json.RawMessage {
	return map[string]json.RawMessage{"prevResult": json.RawMessage(value)}
}

func TestPrevResult(t *testing.T) {
	t.Parallel()
	for _, version := range Versions {
		r := &Request{CNIVersion: version, Keys: prevResult(
			`{"cniVersion": "` + version + `", "ips": [{"version": "4", "address": "10.0.0.2/24", "interface": 0}], "interfaces": [{"name": "eth0"}]}`)}
		prev, err := r.PrevResult()
		if err != nil {
			t.Errorf("%s: %v", version, err)
		} else if len(prev.IPs) != 1 || prev.IPs[0].Address.String() != "10.0.0.2/24" || len(prev.Interfaces) != 1 {
			t.Errorf("%s: %+v", version, prev)
		}
	}
	for _, none := range []map[string]json.RawMessage{nil, prevResult("null")} {
		if prev, err := (&Request{Keys: none}).PrevResult(); prev != nil || err != nil {
			t.Errorf("%s: %v, %v", none, prev, err)
		}
	}
	_, err := (&Request{CNIVersion: "1.1.0", Keys: prevResult(`{"ips": 3}`)}).PrevResult()
	if code(err) != 7 || !strings.Contains(err.Error(), "prevResult is {") {
		t.Errorf("one that can't be read: %v", err)
	}
}

func TestTaskARN(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ args, want, problem string }{
		"nothing":                  {},
		"the task":                 {args: "TASK_ARN=arn:aws:ecs:x", want: "arn:aws:ecs:x"},
		"among others":             {args: "K8S_POD_NAME=web;TASK_ARN=a;IgnoreUnknown=true", want: "a"},
		"others alone":             {args: "IgnoreUnknown=1;K8S_POD_NAME=web"},
		"others that may not be":   {args: "TASK_ARN=a;K8S_POD_NAME=web", problem: `"K8S_POD_NAME" is unknown`},
		"others forbidden by name": {args: "K8S_POD_NAME=web;IgnoreUnknown=0", problem: `"K8S_POD_NAME" is unknown`},
		"no pair":                  {args: "TASK_ARN", problem: "expected pairs such as"},
		"a semicolon at the end":   {args: "TASK_ARN=a;", problem: "expected pairs such as"},
		"neither yes nor no":       {args: "IgnoreUnknown=maybe", problem: "IgnoreUnknown=1 or IgnoreUnknown=0"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := (&Request{args: test.args}).TaskARN()
			if got != test.want || (err != nil) != (test.problem != "") || err != nil && !strings.Contains(err.Error(), test.problem) {
				t.Errorf("TaskARN() = %q, %v", got, err)
			}
		})
	}
}

func FuzzTaskARN(f *testing.F) {
	for _, seed := range []string{"", "TASK_ARN=a", "IgnoreUnknown=1;A=b;TASK_ARN=a=b", ";", "=", "TASK_ARN=;TASK_ARN=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, args string) {
		arn, err := (&Request{args: args}).TaskARN()
		if err == nil && arn != "" && !strings.Contains(args, "TASK_ARN="+arn) {
			t.Errorf("%q names %q", args, arn)
		}
		if err != nil && code(err) != types.ErrInvalidEnvironmentVariables {
			t.Errorf("code %d: %v", code(err), err)
		}
	})
}
