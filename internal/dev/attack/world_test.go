package attack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

// A kind of world says what stands between the attacker and the others.
type kind struct {
	guard   string   // the plugin's
	flags   []string // the resolver's
	bare    bool     // the bridge is made by hand, as `ip link add type bridge` leaves it
	flushed bool     // by `nft flush ruleset`, when all is in place
}

var (
	// plain is a bridge of which nothing is guarded, with a resolver that believes it.
	plain = kind{guard: "off", flags: []string{"--bridge", "none", "--witness", "off"}, bare: true}
	// strict is what the product does by itself.
	strict = kind{guard: "strict"}
	// source is its wider mode.
	source = kind{guard: "source", flags: []string{"--guard", "source"}}
	// flushed is strict between somebody's `nft flush ruleset` and its repair: this
	// resolver makes no table, and repairs none.
	flushed = kind{guard: "strict", flags: []string{"--guard", "off"}, flushed: true}
)

var (
	endpoint4 = netip.AddrPortFrom(ecs.EndpointAddr, ecs.EndpointPort)
	gateway4  = netip.MustParseAddr("169.254.172.1")
	gateway6  = netip.MustParseAddr("fd00:ec2::172:1")
	endpoint6 = netip.AddrPortFrom(gateway6, ecs.EndpointPort)
	lanHost   = netip.MustParseAddr("192.0.2.1")
	lanOther  = netip.MustParseAddr("192.0.2.2")
)

// servicePort is where everybody listens, on all addresses, by TCP and UDP.
const servicePort = 2222

// A world is a host with two tasks, and a LAN.
type world struct {
	kind
	host, lan        *testnet.Namespace
	victim, attacker *task
	db               string
	resolver         *testnet.Resolver
	user             *syscall.Credential // who runs the resolver, if not root
	bridgeMAC        net.HardwareAddr
	// wait is how long one try of an attack waits for its effect. Less than a second would not
	// do where it has to show: that is how long a kernel keeps what it has just learnt by ARP.
	wait time.Duration

	hostGot, victimGot, lanGot *sink
}

// A task has a network namespace and what it was given there.
type task struct {
	*testnet.Namespace
	netns, arn, container string
	mac                   net.HardwareAddr
	ip4, ip6              netip.Addr
	veth                  string // the host's end
	added                 []byte // the result of its ADD
}

// at is the task's address of the family of like.
func (k *task) at(like netip.Addr) netip.Addr {
	if like.Is6() {
		return k.ip6
	}
	return k.ip4
}

// newHost makes a host without tasks and without a resolver.
func newHost(t testing.TB, k kind) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Docker daemon")
	}
	w := &world{kind: k, host: testnet.T(t), lan: testnet.T(t)}
	w.db = filepath.Join(t.TempDir(), "bindings.db")
	sh(t, w.host, `
		cd /proc/sys/net/ipv4
		echo 1 >ip_forward
		echo 0 >conf/all/rp_filter
		echo 0 >conf/default/rp_filter
		ip link add lan0 type veth peer name eth0 netns %s
		ip addr add %s/24 dev lan0
		ip link set lan0 up`, w.lan.Path(), lanHost)
	sh(t, w.lan, `
		echo 0 >/proc/sys/net/ipv4/ip_forward
		ip addr add %s/24 dev eth0
		ip link set eth0 up
		ip route add %s/32 via %s
		ip route add 169.254.172.0/22 via %[3]s`, lanOther, ecs.EndpointAddr, lanHost)
	if k.bare {
		sh(t, w.host, "ip link add ecs-bridge type bridge && ip link set ecs-bridge up")
	}
	return w
}

// newWorld makes a host with its two tasks and the resolver.
func newWorld(t testing.TB, k kind) *world {
	t.Helper()
	w := newHost(t, k)
	w.victim, w.attacker = w.newTask(t, "victim"), w.newTask(t, "attacker")
	w.attach(t, w.victim)
	w.attach(t, w.attacker)
	// Else its kernel would send stolen answers on to the victim.
	sh(t, w.attacker.Namespace, "cd /proc/sys/net && echo 0 >ipv4/ip_forward && echo 0 >ipv6/conf/all/forwarding")
	// The victim would answer whoever reaches it.
	sh(t, w.victim.Namespace, `
		ip route add default via %s dev eth0 onlink
		ip route add 169.254.172.0/22 dev eth0
		ip route add fd00:ec2::172:0/112 dev eth0`, gateway4)
	w.serve(t, "--listen", endpoint4.String(), "--listen", endpoint6.String())
	if k.flushed {
		sh(t, w.host, "nft flush ruleset")
	}
	w.hostGot, w.victimGot, w.lanGot = listen(t, w.host), listen(t, w.victim.Namespace), listen(t, w.lan)
	w.whole(t)
	return w
}

// newTask makes a pause container that carries the ARN of a task.
func (w *world) newTask(t testing.TB, name string) *task {
	t.Helper()
	k := &task{arn: fmt.Sprintf("arn:aws:ecs:us-west-2:123456789012:task/%s-%d", name, time.Now().UnixNano())}
	k.container = docker.Run(t, "--network", "none", "--label", "com.amazonaws.ecs.task-arn="+k.arn, image, "/bin/sleep", "1000")
	t.Cleanup(func() {
		if _, err := docker.CLI("rm", "--force", k.container); err != nil {
			t.Error(err)
		}
	})
	k.netns = "/proc/" + docker.Pid(t, k.container) + "/ns/net"
	ns, err := testnet.Open(k.netns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	k.Namespace = ns
	return k
}

// conf is the network's configuration.
func (w *world) conf(container string, ipam ...string) string {
	keys := strings.Join(append(ipam,
		fmt.Sprintf(`"type": "ecs-ipam", "db-path": %q, "id": %q`, w.db, container),
		`"ipv4-subnet": "169.254.172.0/22", "ipv6-subnet": "fd00:ec2::172:0/112"`), ", ")
	return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "ecs-task", "type": "ecs-bridge", "guard": %q, "ipam": {%s}}`, w.guard, keys)
}

// cni calls one of the plugins as a runtime does.
func (w *world) cni(plugin, verb, container, netns, conf string) (*current.Result, error) {
	return testnet.Call{
		Program: filepath.Join(bin, plugin), Verb: verb, Container: container, Netns: netns, Conf: conf,
	}.Run(context.Background(), w.host)
}

// attach is the ADD of a task. Further ipam keys may be given.
func (w *world) attach(t testing.TB, k *task, ipam ...string) {
	t.Helper()
	r, err := w.cni("ecs-bridge", "ADD", k.container, k.netns, w.conf(k.container, ipam...))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Interfaces) != 3 || len(r.IPs) != 2 {
		t.Fatalf("ADD answered %+v; want three interfaces and two addresses", r)
	}
	for _, to := range []struct {
		text string
		mac  *net.HardwareAddr
	}{{r.Interfaces[0].Mac, &w.bridgeMAC}, {r.Interfaces[2].Mac, &k.mac}} {
		if *to.mac, err = net.ParseMAC(to.text); err != nil {
			t.Fatal(err)
		}
	}
	if k.added, err = json.Marshal(r); err != nil {
		t.Fatal(err)
	}
	k.veth = r.Interfaces[1].Name
	k.ip4, _ = netip.AddrFromSlice(r.IPs[0].Address.IP.To4())
	k.ip6, _ = netip.AddrFromSlice(r.IPs[1].Address.IP)
}

// checkConf is conf with the result of the ADD, as CHECK wants it.
func (w *world) checkConf(k *task) string {
	return strings.TrimSuffix(w.conf(k.container), "}") + `, "prevResult": ` + string(k.added) + "}"
}

func (w *world) detach(t testing.TB, k *task) {
	t.Helper()
	if _, err := w.cni("ecs-bridge", "DEL", k.container, k.netns, w.conf(k.container)); err != nil {
		t.Fatal(err)
	}
}

// serve starts the resolver and waits until it is ready. The test's end ends it.
func (w *world) serve(t testing.TB, args ...string) {
	t.Helper()
	words := append([]string{"--netns", "host", "--db", w.db, "--docker-host", docker.Host, "--rate", "0"}, w.flags...)
	w.resolver = &testnet.Resolver{
		Host: w.host, Program: filepath.Join(bin, "ecs-resolver"), Args: append(words, args...),
		User: w.user, LogFile: filepath.Join(filepath.Dir(w.db), "resolver.log"),
	}
	w.resolver.Serve(t, "/readyz")
}

// whole makes sure that both tasks are who they are, at the endpoints given or at both: an
// attack that finds the resolver deaf proves nothing.
func (w *world) whole(t testing.TB, endpoints ...netip.AddrPort) {
	t.Helper()
	if len(endpoints) == 0 {
		endpoints = []netip.AddrPort{endpoint4, endpoint6}
	}
	for _, k := range []*task{w.victim, w.attacker} {
		for _, server := range endpoints {
			testnet.Await(t, "a task's own answer from "+server.String(), func() error {
				_, body, err := ask(k.Namespace, k.at(server.Addr()), metadataURL(server), 5*time.Second)
				if err == nil && !strings.Contains(body, k.arn) {
					err = fmt.Errorf("%s is not in %s", k.arn, body)
				}
				return err
			})
		}
	}
}

func metadataURL(server netip.AddrPort) string { return "http://" + server.String() + "/v2/metadata" }

// ask sends one request from a namespace, from the address given or from any.
func ask(ns *testnet.Namespace, from netip.Addr, url string, timeout time.Duration) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return ns.AskBy(ctx, testnet.From(from), url)
}

// A sink listens at servicePort and remembers what datagrams it got.
type sink struct {
	mu  sync.Mutex
	got []byte
}

func listen(t testing.TB, ns *testnet.Namespace) *sink {
	t.Helper()
	s := &sink{}
	at := fmt.Sprintf("[::]:%d", servicePort)
	l, err := ns.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var u net.PacketConn
	if err := ns.Do(func() (err error) { u, err = net.ListenPacket("udp", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.got = append(s.got, buf[:n]...)
			s.mu.Unlock()
		}
	}()
	return s
}

// hears waits for a datagram with the mark in it.
func (s *sink) hears(until time.Time, mark []byte) bool {
	for {
		s.mu.Lock()
		heard := bytes.Contains(s.got, mark)
		s.mu.Unlock()
		if heard || time.Now().After(until) {
			return heard
		}
		time.Sleep(5 * time.Millisecond)
	}
}
