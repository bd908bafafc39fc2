package attack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Frames are made byte by byte: what a kernel would not send is the point.

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func ethernet(dst, src net.HardwareAddr, etherType int, payload ...[]byte) []byte {
	return slices.Concat(dst, src, be16(etherType), slices.Concat(payload...))
}

// tagged puts VLAN tags of 802.1Q, the outer one of 802.1ad if there are two, into a frame.
func tagged(frame []byte, ids ...int) []byte {
	var tags []byte
	for i, id := range ids {
		kind := unix.ETH_P_8021Q
		if i < len(ids)-1 {
			kind = unix.ETH_P_8021AD
		}
		tags = append(tags, slices.Concat(be16(kind), be16(id))...)
	}
	return slices.Concat(frame[:12], tags, frame[12:])
}

const (
	arpRequest = 1
	arpReply   = 2
)

func arp(op int, senderMAC net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4}, be16(op), senderMAC, sender.AsSlice(), targetMAC, target.AsSlice())
}

// checksum is that of RFC 1071.
func checksum(data ...[]byte) []byte {
	all := slices.Concat(data...)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	var sum uint32
	for i := 0; i < len(all); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(all[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return be16(int(^sum & 0xffff))
}

// pseudo is the header that the checksums of TCP, UDP and ICMPv6 include.
func pseudo(src, dst netip.Addr, proto, length int) []byte {
	return slices.Concat(src.AsSlice(), dst.AsSlice(), be32(uint32(length)), be32(uint32(proto)))
}

func udp(src, dst netip.AddrPort, payload []byte) []byte {
	length := be16(8 + len(payload))
	head := slices.Concat(be16(int(src.Port())), be16(int(dst.Port())), length)
	sum := checksum(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, 8+len(payload)), head, payload)
	return slices.Concat(head, sum, payload)
}

// Flags of a TCP segment.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

func tcp(src, dst netip.AddrPort, seq, acked uint32, flags byte, payload []byte) []byte {
	head := slices.Concat(be16(int(src.Port())), be16(int(dst.Port())), be32(seq), be32(acked), []byte{5 << 4, flags}, be16(0xffff))
	sum := checksum(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, 20+len(payload)), head, []byte{0, 0, 0, 0}, payload)
	return slices.Concat(head, sum, []byte{0, 0}, payload)
}

func icmp6(src, dst netip.Addr, body []byte) []byte {
	sum := checksum(pseudo(src, dst, unix.IPPROTO_ICMPV6, len(body)), body)
	return slices.Concat(body[:2], sum, body[4:])
}

// ip is a packet of the addresses' family with everything unusual left out.
func ip(src, dst netip.Addr, proto int, payload []byte) []byte {
	if src.Is6() {
		hops := byte(64)
		if proto == unix.IPPROTO_ICMPV6 {
			hops = 255 // as neighbour discovery wants it
		}
		return slices.Concat([]byte{0x60, 0, 0, 0}, be16(len(payload)), []byte{byte(proto), hops}, src.AsSlice(), dst.AsSlice(), payload)
	}
	return ip4(src, dst, proto, 0, nil, payload)
}

// ip4 is an IPv4 packet with a fragment word (flags and offset) and options.
func ip4(src, dst netip.Addr, proto, fragment int, options, payload []byte) []byte {
	size := 20 + len(options)
	head := slices.Concat([]byte{0x40 | byte(size/4), 0}, be16(size+len(payload)), be16(4242), be16(fragment), []byte{64, byte(proto), 0, 0},
		src.AsSlice(), dst.AsSlice(), options)
	copy(head[10:], checksum(head))
	return append(head, payload...)
}

// etherType is that of an address's family.
func etherType(a netip.Addr) int {
	if a.Is6() {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

// solicitation asks for target's MAC address, in the name of the address from, which it
// says to be at mac (RFC 4861, section 4.3).
func solicitation(from netip.Addr, mac net.HardwareAddr, target netip.Addr, mark ...byte) []byte {
	body := slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice(), []byte{1, 1}, mac, option(mark))
	return ip(from, target, unix.IPPROTO_ICMPV6, icmp6(from, target, body))
}

// advertisement says, unasked, that target is at mac (section 4.4).
func advertisement(from, to, target netip.Addr, mac net.HardwareAddr, mark ...byte) []byte {
	body := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice(), []byte{2, 1}, mac, option(mark))
	return ip(from, to, unix.IPPROTO_ICMPV6, icmp6(from, to, body))
}

// router is an advertisement of a default router (section 4.2).
func router(from netip.Addr, mac net.HardwareAddr, mark ...byte) []byte {
	body := slices.Concat([]byte{134, 0, 0, 0, 64, 0}, be16(1800), be32(0), be32(0), []byte{1, 1}, mac, option(mark))
	return ip(from, allNodes, unix.IPPROTO_ICMPV6, icmp6(from, allNodes, body))
}

// option carries a mark of 22 bytes, or nothing, in an option for experiments (RFC 4727).
func option(mark []byte) []byte {
	if len(mark) == 0 {
		return nil
	}
	return append([]byte{253, 3}, mark...)
}

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	broadcast   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	noMAC       = net.HardwareAddr{0, 0, 0, 0, 0, 0}
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	// Of the addresses that bridges keep to themselves (IEEE 802.1D, table 7-10).
	stpMAC  = net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0}
	lldpMAC = net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0x0e}
)

// linkLocal is the address that a kernel would make of a MAC address (RFC 4291, A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
	return netip.AddrFrom16(a)
}
