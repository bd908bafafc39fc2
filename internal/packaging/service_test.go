package packaging

import (
	"os"
	"strings"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// installed is a machine with the package, Docker, and a task named web.
func installed(t *testing.T) *machine {
	t.Helper()
	deb := debian(t)
	m := newMachine(t)
	m.put(t, deb, "/srv/taskmeta.deb", 0o644)
	m.must(t, "dpkg", "--install", "/srv/taskmeta.deb")
	m.startDocker(t)
	m.must(t, "docker", "run", "--detach", "--name", "web", "--network", "none", "--label", "com.amazonaws.ecs.task-arn="+arn, "busybox", "sleep", "1000")
	m.awaitTask(t)
	return m
}

// Whoever asks while the service is restarted waits for the answer: nobody is refused, by a
// new connection or one that was kept.
func TestRestartsRefuseNobody(t *testing.T) {
	const restarts = 10
	m := installed(t)
	m.setting(t, "TASKMETA_RATE=0")
	m.must(t, "systemctl", "restart", "ecs-resolver")
	task, err := testnet.Open(m.path("/proc/" + m.must(t, "docker", "inspect", "--format", "{{.State.Pid}}", "web") + "/ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	defer task.Close()

	clients := task.Clients(t, "http://169.254.170.2/v2/metadata", arn)
	defer clients.Stop()
	for range restarts {
		clients.Await(t, 100)
		m.must(t, "systemctl", "restart", "ecs-resolver")
	}
	t.Logf("%s, over %d restarts", clients, restarts)
}

// The endpoint is in its namespace, which the service and the machine see alike; also when the
// namespace is lost while the service runs. With TASKMETA_NETNS=host it is on the host.
func TestWhereTheEndpointStands(t *testing.T) {
	m := installed(t)
	where := func(host bool) {
		t.Helper()
		m.awaitTask(t)
		links := m.must(t, "sh", "-c", "ip -oneline link show; nft list tables")
		if got := strings.Contains(links, "ecs"); got != host {
			t.Errorf("the endpoint is on the host: %v; the host has\n%s", got, links)
		}
		// What the service sees at the path is what the host sees.
		m.must(t, "sh", "-c", `pid=$(systemctl show --property MainPID --value ecs-resolver); `+
			`test "$(nsenter --target $pid --mount stat -Lc %i /run/taskmeta/netns)" = "$(stat -Lc %i /run/taskmeta/netns)"`)
	}
	where(false)

	// The service may not mount what the host would see. The tasks stay attached, and a restart
	// makes all of it again.
	m.must(t, "umount", "--lazy", "/run/taskmeta/netns")
	m.awaitTask(t)
	m.must(t, "systemctl", "restart", "ecs-resolver")
	where(false)
	for _, unit := range []string{"ecs-resolver-netns.service", "ecs-resolver.socket", "ecs-resolver.service"} {
		m.must(t, "systemctl", "is-active", unit)
	}

	for _, place := range []string{"host", ""} {
		m.setting(t, "TASKMETA_NETNS="+place)
		m.must(t, "systemctl", "stop", "ecs-resolver.socket", "ecs-resolver.service", "ecs-resolver-netns.service")
		m.must(t, "systemctl", "start", "ecs-resolver.service")
		where(place == "host")
	}
}

// setting has the service's settings be this one.
func (m *machine) setting(t *testing.T, line string) {
	t.Helper()
	if err := os.WriteFile(m.path("/etc/default/ecs-resolver"), []byte(line+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
