package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

// The plugins are told where the bindings are and which task it is; what else is
// configured stays, and the configuration itself is not changed.
func TestConfigure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	conf := `{"cniVersion": "1.0.0", "name": "mine", "plugins": [
		{"type": "ecs-bridge", "mtu": 1400, "ipam": {"type": "ecs-ipam", "ipv4-subnet": "10.9.0.0/24", "db-path": "/elsewhere"}},
		{"type": "tuning"}]}`
	if err := os.WriteFile(filepath.Join(dir, "mine.conflist"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	c := Config{Network: "mine", NetDir: dir, DB: "/run/here.db"}
	list, err := c.load()
	if err != nil {
		t.Fatal(err)
	}
	before := string(list.Plugins[0].Bytes)
	full, err := c.configure(list, map[string]string{
		"com.amazonaws.ecs.task-arn": "arn:1", "com.docker.compose.project": "shop", "taskmeta.tag.team": "blue",
	})
	if err != nil {
		t.Fatal(err)
	}
	type plugin struct {
		Type string
		MTU  int
		IPAM map[string]string
		Args struct {
			CNI struct {
				Labels []struct{ Key, Value string }
			}
		}
	}
	var first, second plugin
	if err := errors.Join(json.Unmarshal(full.Plugins[0].Bytes, &first), json.Unmarshal(full.Plugins[1].Bytes, &second)); err != nil {
		t.Fatal(err)
	}
	if first.MTU != 1400 || first.IPAM["db-path"] != "/run/here.db" || first.IPAM["ipv4-subnet"] != "10.9.0.0/24" {
		t.Errorf("the first plugin is configured with %+v", first)
	}
	if got := fmt.Sprint(first.Args.CNI.Labels); got != "[{com.amazonaws.ecs.task-arn arn:1} {taskmeta.tag.team blue}]" {
		t.Errorf("its labels are %s", got)
	}
	if second.Type != "tuning" || second.IPAM != nil {
		t.Errorf("the second plugin is configured with %+v", second)
	}
	if string(list.Plugins[0].Bytes) != before {
		t.Error("the network's own configuration was changed")
	}
}

func TestNetworksThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ file, text, says string }{
		"none of that name": {"other.conflist", `{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "tuning"}]}`, "no file in"},
		"no file at all":    {"readme", "", "no file in"},
		"no JSON":           {"mine.conflist", "{", "reading the configuration files in"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, test.file), []byte(test.text), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := Config{Network: "mine", NetDir: dir}.load()
			if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), `"mine"`) || !strings.Contains(err.Error(), dir) {
				t.Errorf("got %v; want the network, the folder, and %q", err, test.says)
			}
		})
	}
}

// A binding is collected when its namespace is gone, or has another owner by now, and not
// while it is being made.
func TestWhatIsGone(t *testing.T) {
	t.Parallel()
	ns := testnet.T(t)
	add := exec.Command("sh", "-ec", "ip link add br0 type bridge; ip address add 169.254.172.7/22 dev br0")
	if err := ns.Run(add); err != nil {
		t.Fatal(err)
	}
	own, err := netns.Identify(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tests := map[string]struct {
		netns, addr string
		id          uint64
		created     time.Time
		want        bool
	}{
		"its namespace has its address":            {ns.Path(), "169.254.172.7/22", own.Ino, now.Add(-time.Hour), false},
		"its namespace is gone":                    {"/proc/0/ns/net", "169.254.172.7/22", own.Ino, now, true},
		"another has taken its path":               {ns.Path(), "169.254.172.7/22", own.Ino + 1, now, true},
		"another has taken it, that was not known": {ns.Path(), "169.254.172.8/22", 0, now.Add(-time.Hour), true},
		"its address is not there, and young":      {ns.Path(), "169.254.172.8/22", own.Ino, now.Add(-time.Second), false},
	}
	for name, test := range tests {
		b := &ecs.Binding{Netns: test.netns, NetnsID: test.id, Addrs: []netip.Prefix{netip.MustParsePrefix(test.addr)}, Created: test.created}
		if got, err := isGone(b, now); err != nil || got != test.want {
			t.Errorf("%s: gone is %t (%v), want %t", name, got, err, test.want)
		}
	}
}
