package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
)

// A Link is an interface.
type Link struct {
	Name, Kind, Alias string
	Index             int
	MAC               net.HardwareAddr
	Loopback, Up      bool
	// Carrier is set while it is up, and so is what it is connected to; it says so at once.
	Carrier bool
	// Passes is set once frames pass: it is up, and so is what it is connected to. The kernel
	// says so by the state "up", and by "unknown" of an interface whose carrier has been there
	// since it was made, such as a bridge that somebody else has set up. A carrier that has
	// changed is in effect only once the state has followed.
	Passes bool
	// Master is the index of the bridge whose port it is, or 0.
	Master int
	// Peer is the index of the other end of a veth pair, in the namespace whose ID is
	// PeerNetns, which is -1 for one that has none or is this one.
	Peer, PeerNetns int
	// Port are a bridge port's settings, nil for what is no port.
	Port *Settings
	// Counters are those of struct rtnl_link_stats64 in its order.
	Counters []byte
}

// Some of linux/rtnetlink.h and linux/if.h.
const (
	extSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS: a link without its counters of IPv6
	operUnknown  = 0      // IF_OPER_UNKNOWN
	operUp       = 6      // IF_OPER_UP
)

// Link looks an interface up; [unix.ENODEV] where there is none of that name.
func (c *Conn) Link(name string) (Link, error) {
	return c.link("looking up interface "+name, 0, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
}

// LinkAt looks an interface up by its index; [unix.ENODEV] where there is none.
func (c *Conn) LinkAt(index int) (Link, error) {
	return c.link(fmt.Sprintf("looking up interface %d", index), index)
}

func (c *Conn) link(doing string, index int, more ...nl.NetlinkRequestData) (Link, error) {
	answer, err := c.One(getLink(doing, 0, index, more...))
	if err != nil {
		return Link{}, err
	}
	return readLink(answer)
}

// Links lists all interfaces.
func (c *Conn) Links() ([]Link, error) {
	return list(c, getLink("listing interfaces", unix.NLM_F_DUMP, 0), readLink)
}

func getLink(doing string, flags, index int, more ...nl.NetlinkRequestData) Step {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(index)
	return NewStep(unix.RTM_GETLINK, flags, doing, slices.Concat(
		[]nl.NetlinkRequestData{info, nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extSkipStats))}, more)...)
}

// list reads every answer.
func list[T any](c *Conn, s Step, read func([]byte) (T, error)) ([]T, error) {
	answers, err := c.Ask(s)
	if err != nil {
		return nil, err
	}
	all := make([]T, len(answers))
	for i, answer := range answers {
		if all[i], err = read(answer); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Doing, err)
		}
	}
	return all, nil
}

// attributes are those after the fixed part of a message, of that length.
func attributes(message []byte, fixed int) ([]syscall.NetlinkRouteAttr, error) {
	if len(message) < fixed {
		return nil, unix.EINVAL
	}
	return nl.ParseRouteAttr(message[fixed:])
}

func readLink(message []byte) (Link, error) {
	attrs, err := attributes(message, unix.SizeofIfInfomsg)
	if err != nil {
		return Link{}, err
	}
	info := nl.DeserializeIfInfomsg(message)
	l := Link{Index: int(info.Index), Loopback: info.Flags&unix.IFF_LOOPBACK != 0, Up: info.Flags&unix.IFF_UP != 0, Carrier: info.Flags&unix.IFF_LOWER_UP != 0, PeerNetns: -1}
	var state byte
	changed := false // the carrier, ever
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_IFALIAS:
			l.Alias = unix.ByteSliceToString(a.Value)
		case unix.IFLA_ADDRESS:
			l.MAC = a.Value
		case unix.IFLA_OPERSTATE:
			state = a.Value[0]
		case unix.IFLA_CARRIER_CHANGES:
			changed = number(a) != 0
		case unix.IFLA_MASTER:
			l.Master = number(a)
		case unix.IFLA_LINK:
			l.Peer = number(a)
		case unix.IFLA_LINK_NETNSID:
			l.PeerNetns = number(a)
		case unix.IFLA_STATS64:
			l.Counters = a.Value
		case unix.IFLA_LINKINFO:
			if err := l.readInfo(a.Value); err != nil {
				return Link{}, err
			}
		}
	}
	l.Passes = state == operUp || state == operUnknown && l.Carrier && !changed
	return l, nil
}

func (l *Link) readInfo(nested []byte) error {
	attrs, err := nl.ParseRouteAttr(nested)
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case nl.IFLA_INFO_KIND:
			l.Kind = unix.ByteSliceToString(a.Value)
		case unix.IFLA_INFO_SLAVE_DATA:
			l.Port = readSettings(a.Value)
		}
	}
	return err
}

// number reads a signed number of 32 bits.
func number(a syscall.NetlinkRouteAttr) int { return int(int32(binary.NativeEndian.Uint32(a.Value))) }

// NetnsID returns the ID that the socket's namespace has for another one, -1 if none.
func (c *Conn) NetnsID(other *netns.NS) (int, error) {
	answer, err := c.One(NewStep(unix.RTM_GETNSID, 0, "asking for the ID of a network namespace",
		nl.NewRtGenMsg(), nl.NewRtAttr(unix.NETNSA_FD, nl.Uint32Attr(uint32(other.FD())))))
	if err != nil {
		return 0, err
	}
	attrs, err := attributes(answer, nl.NewRtGenMsg().Len())
	for _, a := range attrs {
		if a.Attr.Type == unix.NETNSA_NSID {
			return number(a), nil
		}
	}
	return -1, err
}
