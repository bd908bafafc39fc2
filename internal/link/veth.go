package link

import (
	"encoding/base32"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/rtnl"
)

// ErrNameTaken: the task's namespace has an interface of the wanted name already.
var ErrNameTaken = errors.New("the interface name is taken in the task's namespace")

var lower = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// HostName is the name of the host's end of an attachment's veth pair. A link's name has
// at most 15 bytes, so it is a hash of the attachment, of 55 bits.
func HostName(a ecs.Attachment) string {
	return "ecsv" + lower.EncodeToString(hash(a))[:11]
}

// hostMAC is the MAC of the same end. Nothing is sent to it.
func hostMAC(a ecs.Attachment) net.HardwareAddr {
	return append(net.HardwareAddr{0x0e}, hash(a)[:5]...)
}

func hash(a ecs.Attachment) []byte {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%s", a.Network, a.Container, a.IfName)
	return h.Sum(nil)
}

// The alias of the host's end says whose it is, since when in nanoseconds since boot, and
// in which mode it is guarded: five words after this one. The kernel keeps 255 bytes of it.
const (
	aliasMark = "taskmeta"
	aliasMax  = 255
)

func alias(a ecs.Attachment, now time.Duration, guard string) string {
	return strings.Join([]string{aliasMark, a.Network, a.Container, a.IfName, strconv.FormatInt(int64(now), 10), guard}, " ")
}

// MaxNames is the number of bytes that the names of network and container of an attachment
// may have together.
func MaxNames(a ecs.Attachment) int {
	const digits = 19 // of the largest time
	const mode = 6    // bytes of the longest mode
	return aliasMax - len(aliasMark) - len(a.IfName) - digits - mode - 5
}

// parseAlias reports whether the alias is one of ours.
func parseAlias(s string) (a ecs.Attachment, since time.Duration, guard string, ok bool) {
	f := strings.Split(s, " ")
	if len(f) != 6 || f[0] != aliasMark {
		return ecs.Attachment{}, 0, "", false
	}
	n, err := strconv.ParseInt(f[4], 10, 64)
	return ecs.Attachment{Network: f[1], Container: f[2], IfName: f[3]}, time.Duration(n), f[5], err == nil
}

// A Veth is the host's end of an attachment's veth pair.
type Veth struct {
	Attachment ecs.Attachment
	// Since is when it was made, on the clock since boot.
	Since time.Duration
	// Guard is the mode in which it is guarded.
	Guard string
	Name  string
	Index int
	MAC   net.HardwareAddr
	Up    bool
	// Bridge is the index of the bridge whose port it is, or 0.
	Bridge int
	// TaskNetns is this namespace's ID for the task's, -1 if it has none.
	TaskNetns int
}

// MakeVeth makes the pair: the host's end as a port of the bridge and without IPv6, the
// other in the task's namespace under the attachment's interface name, both down. That one is
// the last of the task's interfaces, whatever is added to it later. The error is
// [ecs.ErrHeld] for an attachment that has a pair, and [ErrNameTaken] where its name is
// somebody else's.
func (h *Host) MakeVeth(t *Task, a ecs.Attachment, b Bridge, mtu int, now time.Duration, guard string) (Veth, error) {
	name := HostName(a)
	if n := len(a.Network) + len(a.Container); n > MaxNames(a) {
		return Veth{}, fmt.Errorf("the names of network and container have %d bytes: expected at most %d", n, MaxNames(a))
	}
	if err := h.keepMAC(b); err != nil {
		return Veth{}, err
	}
	attach := setLink("making "+name+" a port of "+b.Name, name,
		nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias(a, now, guard))), nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(b.Index))))
	made, err := h.makePair(t, a, mtu, attach)
	if err != nil {
		return Veth{}, err
	}
	v, found, err := h.Veth(a)
	if err == nil && !found {
		err = fmt.Errorf("veth %s was removed while it was set up", name)
	}
	if err := errors.Join(made, err, h.disableIPv6(name)); err != nil {
		byName := linkStep(unix.RTM_DELLINK, 0, "removing veth "+name, nl.NewIfInfomsg(unix.AF_UNSPEC), name)
		byName.Fine = unix.ENODEV
		return Veth{}, errors.Join(err, h.Do(byName))
	}
	return v, nil
}

// The task's end has an index that is higher than any the kernel gives by itself, since it
// counts up from 1 and goes on from there: programs that take the first interface of a
// container for its own, as `hostname -I`, the JVM and what is built on it do, then never
// take ours. Kernels before 6.9 list interfaces by the last eight bits of the index first, so
// those are set: of 256 interfaces that come one is listed later all the same.
const (
	lastIndex     = 1_000_000_255
	lastIndexStep = 256
)

// makePair makes both ends and lets attach follow in the same system call: a process that is
// killed has done both or none. Attached is what became of the second.
//
// The kernel takes an index for the main device only, so that is the task's end, and the
// host's its peer. With an index the kernel does not look for the main device's name in the
// namespace of the socket either, where the host's own eth0 may be. Kernels before 6.13 look
// there for the index instead.
func (h *Host) makePair(t *Task, a ecs.Attachment, mtu int, attach rtnl.Step) (attached, err error) {
	name := HostName(a)
	size := nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
	peer.AddChild(size)
	peer.AddChild(macAttr(hostMAC(a)))
	main := nl.NewIfInfomsg(unix.AF_UNSPEC)
	for index := lastIndex; ; index += lastIndexStep {
		if free, err := t.isFree(index); err != nil {
			return nil, err
		} else if !free {
			continue
		}
		main.Index = int32(index)
		made := h.Try(
			linkStep(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "making veth "+name, main, a.IfName,
				nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(t.NS.FD()))), size, info),
			attach,
		)
		switch err := made[0]; {
		case err == nil:
			return made[1], nil
		case errors.Is(err, unix.EBUSY): // another ADD has taken the index since
		case errors.Is(err, unix.EEXIST):
			if _, held := h.Link(name); held == nil {
				return nil, fmt.Errorf("veth %s exists: %w", name, ecs.ErrHeld)
			}
			switch _, taken := t.Link(a.IfName); {
			case taken == nil:
				return nil, fmt.Errorf("%s: %w", a.IfName, ErrNameTaken)
			case !errors.Is(taken, unix.ENODEV):
				return nil, taken
			}
			// Else it is the index, here or in the task since it was looked for.
		default:
			return nil, err
		}
	}
}

// isFree reports whether no interface has the index.
func (c conn) isFree(index int) (bool, error) {
	_, err := c.LinkAt(index)
	if errors.Is(err, unix.ENODEV) {
		return true, nil
	}
	return false, err
}

// SetUp brings the host's end up, the other being up, and returns when the task's frames
// reach the bridge and the bridge's reach the task.
func (h *Host) SetUp(v Veth, b Bridge) error {
	if err := h.Do(setUp(v.Name)); err != nil {
		return err
	}
	return errors.Join(h.awaitUp(v.Name), h.awaitUp(b.Name))
}

// Veth returns the attachment's veth, and false where there is none. An interface of its
// name that does not say that it is this attachment's is not.
func (h *Host) Veth(a ecs.Attachment) (Veth, bool, error) {
	l, err := h.Link(HostName(a))
	if errors.Is(err, unix.ENODEV) {
		return Veth{}, false, nil
	}
	if err != nil {
		return Veth{}, false, err
	}
	v, ok := veth(l)
	return v, ok && v.Attachment == a, nil
}

// veth reads a veth of ours.
func veth(l rtnl.Link) (Veth, bool) {
	a, since, guard, ok := parseAlias(l.Alias)
	if !ok || l.Kind != "veth" {
		return Veth{}, false
	}
	return Veth{
		Attachment: a, Since: since, Guard: guard, Name: l.Name, Index: l.Index, MAC: l.MAC,
		Up: l.Up, Bridge: l.Master, TaskNetns: l.PeerNetns,
	}, true
}

// Veths returns the veths of all attachments on this host.
func (h *Host) Veths() ([]Veth, error) {
	links, err := h.Links()
	if err != nil {
		return nil, err
	}
	var veths []Veth
	for _, l := range links {
		if v, ok := veth(l); ok {
			veths = append(veths, v)
		}
	}
	return veths, nil
}

// DelVeth removes both ends; ends that are gone are as good as removed. The kernel takes
// some 16 ms for it, in most of which it tidies up after a link that nothing can come from
// any more: that is when meanwhile runs, which may use the host. The error is of both.
func (h *Host) DelVeth(v Veth, meanwhile func() error) error {
	events, err := rtnl.Subscribe(h.NS, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return err
	}
	remover, err := dial(h.NS)
	if err != nil {
		return errors.Join(err, events.Close())
	}
	remove := delLink("veth "+v.Name, v.Index)
	removed := make(chan error, 1)
	go func() { removed <- errors.Join(remover.Do(remove), remover.Close(), events.Close()) }()
	if !awaitRemoval(events, v.Index) { // no word of it: gone before, or not removed
		if err := <-removed; err != nil {
			return err
		}
		return meanwhile()
	}
	return errors.Join(meanwhile(), <-removed)
}

// awaitRemoval reports whether the socket told of the link's removal before it was closed.
func awaitRemoval(events *rtnl.Events, index int) bool {
	for {
		messages, err := events.Next(time.Time{})
		if err != nil {
			return false
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_DELLINK {
				continue
			}
			// A bridge tells of its port's removal as well, in its own family and earlier.
			if info := nl.DeserializeIfInfomsg(m.Data); int(info.Index) == index && info.Family == unix.AF_UNSPEC {
				return true
			}
		}
	}
}
