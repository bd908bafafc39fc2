package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// An Addr is an address of an interface, in its subnet.
type Addr struct {
	netip.Prefix
	Index  int // of the interface
	Global bool
	Proto  uint8 // who gave it, 0 for nobody who says so; a kernel before 5.18 does not keep it
}

// ifaProto is IFA_PROTO of linux/if_addr.h.
const ifaProto = 11

// Addrs lists the addresses of the interface of that index, or of all for 0.
func (c *Conn) Addrs(index int) ([]Addr, error) {
	all, err := list(c, NewStep(unix.RTM_GETADDR, unix.NLM_F_DUMP, "listing addresses", nl.NewIfAddrmsg(unix.AF_UNSPEC)), readAddr)
	return slices.DeleteFunc(all, func(a Addr) bool { return index != 0 && a.Index != index }), err
}

func readAddr(message []byte) (Addr, error) {
	attrs, err := attributes(message, unix.SizeofIfAddrmsg)
	if err != nil {
		return Addr{}, err
	}
	info := nl.DeserializeIfAddrmsg(message)
	var local, remote netip.Addr
	var proto uint8
	for _, a := range attrs {
		switch a.Attr.Type {
		case ifaProto:
			proto = a.Value[0]
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_ADDRESS: // the only one of IPv6, and of IPv4 the other end's where there is one
			remote, _ = netip.AddrFromSlice(a.Value)
		}
	}
	addr := Addr{netip.PrefixFrom(remote, int(info.Prefixlen)), int(info.Index), info.Scope == unix.RT_SCOPE_UNIVERSE, proto}
	if local.IsValid() && local != remote {
		addr.Prefix = netip.PrefixFrom(local, local.BitLen())
	}
	return addr, nil
}

// NewAddr is the step that gives an address to the interface of that index, with these
// flags (IFA_F_NODAD, …), as this protocol's.
func NewAddr(index int, p netip.Prefix, flags uint32, proto uint8) Step {
	s := addrStep(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "adding address "+p.String(), index, p)
	s.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags)))
	if proto != 0 {
		s.AddData(nl.NewRtAttr(ifaProto, nl.Uint8Attr(proto)))
	}
	return s
}

// DelAddr is the step that takes an address away.
func DelAddr(index int, p netip.Prefix) Step {
	return addrStep(unix.RTM_DELADDR, 0, "removing address "+p.String(), index, p)
}

func addrStep(message, flags int, doing string, index int, p netip.Prefix) Step {
	raw := p.Addr().AsSlice()
	info := nl.NewIfAddrmsg(Family(p.Addr()))
	info.Index, info.Prefixlen = uint32(index), uint8(p.Bits())
	return NewStep(message, flags, doing, info, nl.NewRtAttr(unix.IFA_LOCAL, raw), nl.NewRtAttr(unix.IFA_ADDRESS, raw))
}

// Family is the address family of an address.
func Family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// A Neighbour is an entry of the neighbour table, which has the MAC address for an IP
// address, or of a bridge's forwarding table, which has the port for a MAC address.
type Neighbour struct {
	Index  int // of the interface
	Master int // of a forwarding entry: the index of the bridge
	Addr   netip.Addr
	MAC    net.HardwareAddr
	State  uint16 // NUD_PERMANENT, …
	Flags  uint8  // NTF_MASTER, …
}

// family is the one of the table in which the entry is.
func (n Neighbour) family() int {
	if !n.Addr.IsValid() {
		return unix.AF_BRIDGE
	}
	return Family(n.Addr)
}

func (n Neighbour) step(message, flags int, doing string) Step {
	info, _ := binary.Append(nil, binary.NativeEndian, unix.NdMsg{Family: uint8(n.family()), Ifindex: int32(n.Index), State: n.State, Flags: n.Flags})
	s := NewStep(message, flags, doing, Raw(info))
	if n.Addr.IsValid() {
		s.AddData(nl.NewRtAttr(unix.NDA_DST, n.Addr.AsSlice()))
	}
	if n.MAC != nil {
		s.AddData(nl.NewRtAttr(unix.NDA_LLADDR, n.MAC))
	}
	return s
}

// Set is the step that makes the entry, or makes it what it is to be.
func (n Neighbour) Set(doing string) Step {
	return n.step(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, doing)
}

// Del is the step that deletes the entry.
func (n Neighbour) Del(doing string) Step { return n.step(unix.RTM_DELNEIGH, 0, doing) }

// Neighbour looks one entry up by what of it is known; [unix.ENOENT] if there is none.
func (c *Conn) Neighbour(n Neighbour) (Neighbour, error) {
	key := fmt.Sprint(n.Addr)
	if n.MAC != nil {
		key = n.MAC.String()
	}
	answer, err := c.One(n.step(unix.RTM_GETNEIGH, 0, "looking up neighbour "+key))
	if err != nil {
		return Neighbour{}, err
	}
	return readNeighbour(answer)
}

// Neighbours lists the entries of a family, of which AF_BRIDGE has the forwarding entries of
// all bridges, and AF_UNSPEC all others.
func (c *Conn) Neighbours(family int) ([]Neighbour, error) {
	info, _ := binary.Append(nil, binary.NativeEndian, unix.NdMsg{Family: uint8(family)})
	return list(c, NewStep(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, "listing neighbours", Raw(info)), readNeighbour)
}

// readNeighbour reads a struct ndmsg and what comes after it. There may be thousands in a
// list, so it copies nothing.
func readNeighbour(message []byte) (Neighbour, error) {
	if len(message) < unix.SizeofNdMsg {
		return Neighbour{}, unix.EINVAL
	}
	n := Neighbour{
		Index: int(int32(binary.NativeEndian.Uint32(message[4:]))),
		State: binary.NativeEndian.Uint16(message[8:]), Flags: message[10],
	}
	each(message[unix.SizeofNdMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.NDA_DST:
			n.Addr, _ = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			n.MAC = value
		case unix.NDA_MASTER:
			if len(value) == 4 {
				n.Master = int(int32(binary.NativeEndian.Uint32(value)))
			}
		}
	})
	return n, nil
}
