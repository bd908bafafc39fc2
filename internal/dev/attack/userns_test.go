package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// An intruder is a task with CAP_NET_ADMIN that reaches through its veth: the kernel gave
// the namespace of the other end a number, and acts there for whoever may.
type intruder struct {
	host   int // that number
	own    int // a descriptor of the namespace it is in
	bridge int // index in the host's namespace
	ports  map[string]int
}

// newIntruder acts in the calling thread's namespace.
func newIntruder() (*intruder, error) {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &intruder{host: eth0.Attrs().NetNsID, own: own, ports: map[string]int{}}, nil
}

func (i *intruder) request(kind, flags int, index int, up bool, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := nl.NewNetlinkRequest(kind, flags)
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(index)
	if up {
		info.Flags, info.Change = unix.IFF_UP, unix.IFF_UP
	}
	req.AddData(info)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(i.host))))
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_ROUTE, 0)
}

// look lists the host's links.
func (i *intruder) look() error {
	answers, err := i.request(unix.RTM_GETLINK, unix.NLM_F_DUMP, 0, false)
	if err != nil {
		return err
	}
	for _, a := range answers {
		link, err := netlink.LinkDeserialize(nil, a)
		if err != nil {
			return err
		}
		if link.Attrs().Name == "ecs-bridge" {
			i.bridge = link.Attrs().Index
		}
		i.ports[link.Attrs().Name] = link.Attrs().Index
	}
	return nil
}

// enter makes a veth pair of which one end is a port of the bridge and the other is here.
func (i *intruder) enter(port, here string) error {
	kind := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	kind.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := kind.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(here))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(i.own)))
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(port)), kind}
	if i.bridge != 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(i.bridge))))
	}
	_, err := i.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, true, attrs...)
	return err
}

// remove deletes one of the host's links.
func (i *intruder) remove(index int) error {
	_, err := i.request(unix.RTM_DELLINK, unix.NLM_F_ACK, index, false)
	return err
}

// intrude gives the attacker a port of its own in place of the victim's.
func (w *world) intrude(t *testing.T) *wire {
	t.Helper()
	err := w.attacker.Do(func() error {
		i, err := newIntruder()
		if err != nil {
			return err
		}
		defer unix.Close(i.own)
		if err := i.look(); err != nil {
			return fmt.Errorf("listing the host's links: %w", err)
		}
		if err := i.enter("intruder", "eth9"); err != nil {
			return fmt.Errorf("making a port: %w", err)
		}
		if err := i.remove(i.ports[w.victim.veth]); err != nil {
			return fmt.Errorf("removing the victim's port: %w", err)
		}
		eth9, err := netlink.LinkByName("eth9")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(eth9)
	})
	if err != nil {
		t.Fatal(err)
	}
	return tap(t, w.attacker.Namespace, "eth9", unix.ETH_P_ALL)
}

// keepRemoving has the attacker remove the victim's port whenever it is there, until stop is
// called. The resolver makes it again, and with it what sends the answers to the victim.
func (w *world) keepRemoving(t *testing.T) (stop func()) {
	t.Helper()
	ended, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		failed <- w.attacker.Do(func() error {
			i, err := newIntruder()
			if err != nil {
				return err
			}
			defer unix.Close(i.own)
			for {
				select {
				case <-ended:
					return nil
				default:
				}
				clear(i.ports)
				if err := i.look(); errors.Is(err, netlink.ErrDumpInterrupted) {
					continue // links came or went meanwhile: the list is read again
				} else if err != nil {
					return err
				}
				if index, there := i.ports[w.victim.veth]; there {
					if err := i.remove(index); err != nil && !errors.Is(err, unix.ENODEV) {
						return err
					}
				}
			}
		})
	}()
	return func() {
		close(ended)
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestAPortOfItsOwn is the attack of a task that was given CAP_NET_ADMIN in the initial
// user namespace: no guard of its port is worth anything then.
func TestAPortOfItsOwn(t *testing.T) {
	t.Run("without the witness", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, kind{guard: "strict", flags: []string{"--witness", "off"}})
		line := w.intrude(t)
		defer w.keepRemoving(t)()
		w.mustSucceed(t, attack{try: func(t testing.TB, w *world) bool {
			return w.forge(t, line, endpoint4, w.victim.mac, untagged)
		}})
	})
	t.Run("with the witness", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, strict)
		line := w.intrude(t)
		stop := w.keepRemoving(t)
		w.wait = 200 * time.Millisecond
		testnet.Await(t, "the witness to refuse the attacker", func() error {
			if w.forge(t, line, endpoint4, w.victim.mac, untagged) {
				t.Fatal("the attack succeeds")
			}
			if !strings.Contains(w.resolver.Log(), `"code":"WitnessFailed"`) {
				return errors.New("the log does not say so")
			}
			return nil
		})
		stop()
		w.alarmed(t, "intruder")
	})
}

// TestAPortOfItsOwnInAUserNamespace tries the same where the task has its capabilities in a
// user namespace of its own.
func TestAPortOfItsOwnInAUserNamespace(t *testing.T) {
	t.Parallel()
	w := newHost(t, strict)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	netns := "/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net"
	r, err := w.cni("ecs-bridge", "ADD", "child", netns, w.conf("child"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for lines := bufio.NewReader(out); strings.Count(said.String(), "\n") < 4; {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if err != nil {
			t.Fatalf("the child says %q, and then %v", said.String(), err)
		}
	}
	want := "look: refused\nenter: refused\nremove: refused\nown interface: <nil>\n"
	if said.String() != want {
		t.Errorf("the child says:\n%s\nwant:\n%s", said.String(), want)
	}
	if links := sh(t, w.host, "ip -o link"); strings.Contains(links, "intruder") || !strings.Contains(links, r.Interfaces[1].Name) {
		t.Errorf("the host's links: %s", links)
	}
}

// childVariable makes the test program the child of that test.
const childVariable = "TASKMETA_ATTACK_CHILD"

// child waits until it has an interface, and says what became of each step. It stays, and
// its namespace with it, for as long as its standard input is open.
func child() int {
	runtime.LockOSThread()
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		fmt.Println(err)
		return 1
	}
	i, err := newIntruder()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	say := func(step string, err error) {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			fmt.Println(step + ": refused")
		} else {
			fmt.Println(step+":", err)
		}
	}
	say("look", i.look())
	say("enter", i.enter("intruder", "eth9"))
	say("remove", i.remove(eth0.Attrs().ParentIndex)) // its own port, whose index it sees
	// It is root there, else the above would show nothing.
	fmt.Println("own interface:", netlink.LinkSetHardwareAddr(eth0, []byte{2, 0, 0, 0, 0, 1}))
	_, _ = in.ReadString('\n')
	return 0
}
