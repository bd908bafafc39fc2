package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// addAddr gives an address to the interface of that index. It may be used at once:
// nobody else has it, so IPv6 does not ask around first. With onLink the rest of the
// prefix is taken to be on the link as well.
func addAddr(index int, p netip.Prefix, onLink bool) step {
	flags := uint32(unix.IFA_F_NODAD)
	if !onLink {
		flags |= unix.IFA_F_NOPREFIXROUTE
	}
	raw := p.Addr().AsSlice()
	message := nl.NewIfAddrmsg(family(p.Addr()))
	message.Index, message.Prefixlen = uint32(index), uint8(p.Bits())
	s := newStep(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, fmt.Sprintf("adding address %s", p),
		message, nl.NewRtAttr(unix.IFA_LOCAL, raw), nl.NewRtAttr(unix.IFA_ADDRESS, raw), nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags)))
	return s
}

// delAddr takes an address away.
func delAddr(index int, p netip.Prefix) step {
	raw := p.Addr().AsSlice()
	message := nl.NewIfAddrmsg(family(p.Addr()))
	message.Index, message.Prefixlen = uint32(index), uint8(p.Bits())
	return newStep(unix.RTM_DELADDR, 0, fmt.Sprintf("removing address %s", p),
		message, nl.NewRtAttr(unix.IFA_LOCAL, raw), nl.NewRtAttr(unix.IFA_ADDRESS, raw))
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// prefix converts what the netlink library and CNI use for an address in its subnet.
func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	p := netip.PrefixFrom(addr, ones-(bits-addr.BitLen()))
	return p, p.IsValid()
}
