package cniedge

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

// A Request is a verb as the runtime asked for it.
type Request struct {
	// Attachment lacks container and interface for GC and STATUS.
	ecs.Attachment
	// Netns is the path of the task's network namespace. DEL may come with an empty one,
	// and with one that is gone.
	Netns string
	// Path is CNI_PATH, where delegated plugins are looked for.
	Path string
	// CNIVersion is the version of the specification that the configuration is written in.
	CNIVersion string
	// Config is the whole network configuration as it came on standard input, and Keys are
	// what stands at its top level.
	Config []byte
	Keys   map[string]json.RawMessage
	// Start is when the runtime's plugin began to serve, before it read its configuration,
	// on the clock since boot: what was recorded later, the author of the configuration did
	// not know of. A plugin that this one delegates to has the same, by [Request.Environ].
	Start time.Duration

	args string
}

// need says what a verb cannot do without. Each has CNI_PATH, since a plugin may delegate.
type need struct {
	verb              string
	attachment, netns bool
	since             string // the version of CNI that brought it
}

var needs = [...]need{
	{verb: "ADD", attachment: true, netns: true, since: Versions[0]},
	{verb: "DEL", attachment: true, since: Versions[0]},
	{verb: "CHECK", attachment: true, netns: true, since: "0.4.0"},
	{verb: "GC", since: "1.1.0"},
	{verb: "STATUS", since: "1.1.0"},
}

func needsOf(verb string) (need, error) {
	for _, n := range needs {
		if n.verb == verb {
			return n, nil
		}
	}
	return need{}, BadEnv("CNI_COMMAND", verb, "ADD, DEL, CHECK, GC, STATUS or VERSION")
}

// fromEnvironment returns a request with what the environment says of it.
func fromEnvironment(n need, start time.Duration) (*Request, error) {
	r := &Request{
		Attachment: ecs.Attachment{Container: os.Getenv("CNI_CONTAINERID"), IfName: os.Getenv("CNI_IFNAME")},
		Netns:      os.Getenv("CNI_NETNS"),
		Path:       os.Getenv("CNI_PATH"),
		Start:      earlier(start, os.Getenv(envStart)),
		args:       os.Getenv("CNI_ARGS"),
	}
	switch {
	case n.attachment && !isName(r.Container):
		return nil, BadEnv("CNI_CONTAINERID", r.Container, "the ID of a container: "+nameExpected)
	case n.attachment && !isIfName(r.IfName):
		return nil, BadEnv("CNI_IFNAME", r.IfName, "the name of an interface: 1 to 15 bytes, without /, : and space, and not . or ..")
	case n.netns && r.Netns == "":
		return nil, BadEnv("CNI_NETNS", r.Netns, "the path of the task's network namespace")
	case r.Path == "":
		return nil, BadEnv("CNI_PATH", r.Path, "the folders of the plugins")
	}
	return r, nil
}

const nameExpected = "letters, digits, _, . and -, of which the first is a letter or a digit"

// isName reports whether the specification lets a container's ID or a network's name be so.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		word := '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !word && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// isIfName reports whether the kernel lets an interface have that name (dev_valid_name).
func isIfName(s string) bool {
	return s != "" && len(s) < unix.IFNAMSIZ && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r")
}

// readConfig reads what every network configuration has.
func (r *Request) readConfig(n need) error {
	if err := json.Unmarshal(r.Config, &r.Keys); err != nil {
		return types.NewError(types.ErrDecodingFailure, "reading the network configuration: "+err.Error(), "")
	}
	version, name := r.Keys["cniVersion"], r.Keys["name"]
	spoken := Versions[slices.Index(Versions, n.since):]
	if json.Unmarshal(version, &r.CNIVersion) != nil || !slices.Contains(spoken, r.CNIVersion) {
		bad := BadKey("cniVersion", version, strings.Join(spoken, ", ")+" for "+n.verb)
		return types.NewError(types.ErrIncompatibleCNIVersion, bad.Error(), "")
	}
	if json.Unmarshal(name, &r.Network) != nil || !isName(r.Network) {
		return BadKey("name", name, "a network's name: "+nameExpected)
	}
	return nil
}

// KeyBefore is the key at the top of a configuration by which a DEL is told to leave alone
// what was made at that time or later: nanoseconds since boot, in a string. Whoever frees
// what it takes for left over can't know of an ADD of the same attachment a moment ago.
const KeyBefore = "taskmeta.before"

// Before returns the time of [KeyBefore]; the end of time if there is none.
func (r *Request) Before() (time.Duration, error) {
	value, ok := r.Keys[KeyBefore]
	if !ok {
		return math.MaxInt64, nil
	}
	var text string
	n, err := int64(0), json.Unmarshal(value, &text)
	if err == nil {
		n, err = strconv.ParseInt(text, 10, 64)
	}
	if err != nil {
		return 0, BadKey(KeyBefore, value, `nanoseconds since boot, such as "1000000000"`)
	}
	return time.Duration(n), nil
}

// envStart hands the start of the runtime's plugin on, in nanoseconds since boot. A GC that
// is passed on would else free the address of an ADD that came in between.
const envStart = "TASKMETA_STARTED"

// earlier returns what was handed on, if that is before start.
func earlier(start time.Duration, handed string) time.Duration {
	n, err := strconv.ParseInt(handed, 10, 64)
	if err != nil {
		return start
	}
	return min(start, time.Duration(n))
}

// Environ is the environment for a plugin that the verb is delegated to.
func (r *Request) Environ(verb string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "CNI_COMMAND=") || strings.HasPrefix(v, envStart+"=")
	})
	return append(env, "CNI_COMMAND="+verb, envStart+"="+strconv.FormatInt(int64(r.Start), 10))
}

// operation names the request in messages.
func (r *Request) operation(verb string) string {
	if r.Container == "" {
		return fmt.Sprintf("%s of network %s", verb, r.Network)
	}
	return fmt.Sprintf("%s of %s", verb, r.Attachment)
}

// checkNetns refuses the plugin's own network namespace: addresses and routes meant for a
// task would end up on the host. A namespace that is missing is for the verb to judge.
func (r *Request) checkNetns() error {
	task, err := netns.Identify(r.Netns)
	if err != nil {
		return nil
	}
	own, err := netns.Own()
	if err != nil {
		return fmt.Errorf("looking at the plugin's own network namespace: %w", err)
	}
	if task == own.ID() {
		return types.NewError(types.ErrInvalidNetNS,
			fmt.Sprintf("CNI_NETNS is %q, which is the plugin's own network namespace: expected the task's", r.Netns), "")
	}
	return nil
}

// PrevResult returns the result of the plugins that ran before, in the newest version, or
// nil where there is none.
func (r *Request) PrevResult() (*current.Result, error) {
	value := r.Keys["prevResult"]
	if len(value) == 0 || string(value) == "null" {
		return nil, nil
	}
	result, err := create.Create(r.CNIVersion, value)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", BadKey("prevResult", value, "a result of CNI "+r.CNIVersion), err)
	}
	prev, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("converting prevResult from CNI %s: %w", r.CNIVersion, err)
	}
	return prev, nil
}

// CheckedResult is [Request.PrevResult] for CHECK, which cannot do without.
func (r *Request) CheckedResult() (*current.Result, error) {
	prev, err := r.PrevResult()
	if err == nil && prev == nil {
		err = BadKey("prevResult", nil, "the result of the ADD that is to be checked")
	}
	return prev, err
}

// ValidAttachments returns the attachments that a GC must keep, and false where the
// configuration has no such list at all. The specification wants one, but cnitool sends
// none; taking that for an empty list would free what is in use. A null is an empty list,
// since that is what libcni makes of one.
func (r *Request) ValidAttachments() (valid map[ecs.Attachment]bool, given bool, err error) {
	const key = "cni.dev/valid-attachments"
	value, given := r.Keys[key]
	if !given {
		return nil, false, nil
	}
	bad := BadKey(key, value, `a list such as [{"containerID": "c1", "ifname": "eth0"}]`)
	var list []types.GCAttachment
	if err := json.Unmarshal(value, &list); err != nil {
		return nil, true, bad
	}
	valid = make(map[ecs.Attachment]bool, len(list))
	for _, a := range list {
		if a.ContainerID == "" || a.IfName == "" {
			return nil, true, bad
		}
		valid[ecs.Attachment{Network: r.Network, Container: a.ContainerID, IfName: a.IfName}] = true
	}
	return valid, true, nil
}

// TaskARN returns what CNI_ARGS says of the task: the value of TASK_ARN, or nothing. As
// CNI has it, a key that is not known is an error unless IgnoreUnknown is set as well.
func (r *Request) TaskARN() (string, error) {
	const expected = `pairs such as "TASK_ARN=arn:aws:ecs:…;IgnoreUnknown=1"`
	var arn, unknown string
	var ignore bool
	for pair := range strings.SplitSeq(r.args, ";") {
		key, value, ok := strings.Cut(pair, "=")
		switch {
		case r.args == "":
		case !ok:
			return "", BadEnv("CNI_ARGS", r.args, expected)
		case key == "TASK_ARN":
			arn = value
		case key == "IgnoreUnknown":
			if err := (*types.UnmarshallableBool)(&ignore).UnmarshalText([]byte(value)); err != nil {
				return "", BadEnv("CNI_ARGS", r.args, "IgnoreUnknown=1 or IgnoreUnknown=0")
			}
		case unknown == "":
			unknown = key
		}
	}
	if unknown != "" && !ignore {
		return "", BadEnv("CNI_ARGS", r.args, fmt.Sprintf("no key but TASK_ARN unless IgnoreUnknown=1 is added: %q is unknown", unknown))
	}
	return arn, nil
}
