//go:build machines

// Package machines has the Debian package live its life on systems that boot, with their own
// kernel, systemd and Docker as Debian configures them. `make machines` runs it.
package machines

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

const arn = "arn:aws:ecs:us-west-2:123456789012:task/default/web"

func TestDebian12(t *testing.T) { live(t, "debian12") }

func TestDebian14(t *testing.T) { live(t, "debian14") }

// live installs the package, uses it through restarts and a reboot, and removes it.
func live(t *testing.T, system string) {
	files := map[string]string{"/taskmeta.deb": os.Getenv("TASKMETA_DEB")}
	box, err := testnet.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	for path, from := range box {
		files["/image"+path] = from
	}
	m := machine{testnet.Boot(t, system, files)}
	m.Must(t, "tar -C /srv/image -c . | docker import - busybox")
	engine := m.Must(t, "uname -r; docker version -f '{{.Server.Version}}'; docker info -f '{{.CgroupVersion}} {{.CgroupDriver}} {{.SecurityOptions}}'")
	if !strings.Contains(engine, "2 systemd") || !strings.Contains(engine, "apparmor") {
		t.Error("the machine lacks what it is booted for: systemd's control groups of version 2, and AppArmor")
	}
	before := append(strings.Split(m.Must(t, traces), "\n"), "")

	m.Must(t, "dpkg --install /srv/taskmeta.deb")
	m.isWell(t)
	m.Must(t, "docker run --detach --restart always --name web --label com.amazonaws.ecs.task-arn="+arn+" busybox sleep 100000")
	m.isAnswered(t)
	m.Must(t, "systemctl restart ecs-resolver")
	m.isAnswered(t)
	m.Must(t, "systemctl restart docker")
	m.isAnswered(t)
	m.Reboot(t)
	m.isAnswered(t)
	m.isWell(t)

	process := m.Must(t, "docker inspect -f '{{.State.Pid}}' web")
	m.Must(t, "dpkg --purge taskmeta")
	for _, trace := range strings.Split(m.Must(t, traces), "\n") {
		if !slices.Contains(before, trace) {
			t.Errorf("the purge left %s; before the installation there was %q", trace, before)
		}
	}
	// The container itself lives on. Debian 14's containerd does not: its CRI plugin ends it when
	// dpkg removes the empty /etc/cni/net.d, and systemd starts it again.
	m.Await(t, "docker exec web true")
	if now := m.Must(t, "docker inspect -f '{{.State.Pid}}' web"); now != process {
		t.Errorf("the container was process %s and is %s", process, now)
	}
}

// traces prints what may be the package's or made by it: units, links, tables, files. Folders
// that were there before may be missing after the purge: dpkg removes one that is empty and of
// no other package.
const traces = `systemctl list-unit-files --no-legend 'ecs-*'; systemctl list-units --all --no-legend 'ecs-*'; ` +
	`ip -oneline link | grep -o 'ecs[^:@ ]*'; nft list tables | grep ecs; ls -d /opt/cni /etc/cni 2>/dev/null; ` +
	`find /etc /opt /run /usr /var -xdev -path /var/lib/cni -prune -o \( -name '*ecs-*' -o -name '*taskmeta*' \) -print 2>/dev/null | sort`

type machine struct{ *testnet.Machine }

// isWell waits until `ecs-resolver status` finds everything in place.
func (m machine) isWell(t *testing.T) {
	t.Helper()
	m.Await(t, "ecs-resolver status")
	m.Must(t, "systemctl is-active ecs-resolver.service ecs-resolver.socket && systemctl is-enabled ecs-resolver.service ecs-resolver.socket")
}

// isAnswered waits until the container named web is told its task.
func (m machine) isAnswered(t *testing.T) {
	t.Helper()
	out := m.Await(t, "docker exec web wget -qO- http://169.254.170.2/v2/metadata")
	var task struct{ TaskARN string }
	if err := json.Unmarshal([]byte(out), &task); err != nil || task.TaskARN != arn {
		t.Fatalf("the answer is of task %q (%v); want %s", task.TaskARN, err, arn)
	}
}
