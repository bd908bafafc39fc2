package attack

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"taskmeta/internal/dev/testnet"
)

// An attack is one thing that a task, a neighbour of the host or a process of the host
// tries. With guard "strict" none succeeds.
type attack struct {
	// try makes one try and reports whether it succeeded.
	try func(t testing.TB, w *world) bool
	// plainStops says why a plain bridge stops it too; else it succeeds there.
	plainStops string
	// flushedLets says why it succeeds after `nft flush ruleset` and before the resolver has
	// mended the host's table; else the other layers stop it.
	flushedLets string
	// sourceLets says why it succeeds with guard "source"; else that stops it too.
	sourceLets string
}

const (
	reachesHost = "the mode is for tasks that talk to more than the endpoint, and the host is beyond their gateway"
	noRules     = "nothing but rules looks at what a frame from the task's own MAC address asks for"
	onlyStrict  = "a host that routes to the tasks' subnets has their gateways' addresses on every interface; it does not with guard `strict`, whose routes a flush leaves alone, but the resolver of this column runs with `--guard off`, so that it repairs nothing"
	fromHost    = "a socket that is bound to the bridge takes connections of the host with itself; the resolver knows no task there, and answers no more than that"
	pastBridge  = "the kernel takes such a frame in at the port itself, past the bridge and its flags"
)

// What an attack is for.
const (
	beTaken        = "to be taken for another task"
	hearOthers     = "to hear what another task is told"
	reachNeighbour = "to deceive or reach another task"
	reachBeyond    = "to reach the host and what is behind it"
	noTask         = "to reach the endpoint or a task without being one"
)

// attacks are all, by their aim and then by what is done.
var attacks = map[string]map[string]attack{
	beTaken: {
		"the victim's IPv4 address, through the kernel":             {try: kernelAs(endpoint4, false)},
		"the victim's IPv4 and MAC address, through the kernel":     {try: kernelAs(endpoint4, true)},
		"the victim's IPv6 address, through the kernel":             {try: kernelAs(endpoint6, false)},
		"the victim's IPv6 and MAC address, through the kernel":     {try: kernelAs(endpoint6, true)},
		"a handshake by hand as the victim from the own MAC":        {try: handshake(endpoint4, ownMAC, untagged)},
		"a handshake by hand as the victim from the victim's MAC":   {try: handshake(endpoint4, victimMAC, untagged)},
		"an IPv6 handshake as the victim from the own MAC":          {try: handshake(endpoint6, ownMAC, untagged)},
		"an IPv6 handshake as the victim from the victim's MAC":     {try: handshake(endpoint6, victimMAC, untagged)},
		"a handshake as the victim behind a priority tag":           {try: handshake(endpoint4, ownMAC, prioritized)},
		"a handshake as the victim behind a priority tag, its MAC":  {try: handshake(endpoint4, victimMAC, prioritized)},
		"an IPv6 handshake as the victim behind a priority tag":     {try: handshake(endpoint6, ownMAC, prioritized)},
		"a handshake as the victim with IP options":                 {try: handshake(endpoint4, ownMAC, withOptions)},
		"a handshake as the victim from the bridge's own MAC":       {try: handshake(endpoint4, bridgeMAC, untagged), plainStops: "the answers go to the victim, whose MAC address has not moved"},
		"a handshake as the victim to the broadcast address":        {try: handshake(endpoint4, ownMAC, toBroadcast), plainStops: "TCP takes no segment that came in a broadcast frame"},
		"a handshake as the victim past the bridge (01:80:c2:…:0e)": {try: handshake(endpoint4, ownMAC, toLLDP), plainStops: "TCP takes no segment that came in a multicast frame"},
		"UDP to the host as the gateway":                            {try: asGateway, plainStops: "the kernel takes no packet from an address of its own"},
	},
	hearOthers: {
		"the victim's MAC taken over by broadcast":               {try: hear(func(w *world) []byte { return ethernet(broadcast, w.victim.mac, 0x88b5) })},
		"the victim's MAC taken over past the bridge":            {try: hear(func(w *world) []byte { return ethernet(lldpMAC, w.victim.mac, unix.ETH_P_LLDP) })},
		"the host told by ARP that the victim is here":           {try: hear(claim4(arpRequest))},
		"the host told by an ARP answer that the victim is here": {try: hear(claim4(arpReply))},
		"the host told by a solicitation that the victim is here": {try: hearBy(endpoint6, func(w *world) []byte {
			return ethernet(w.bridgeMAC, w.attacker.mac, unix.ETH_P_IPV6, solicitation(w.victim.ip6, w.attacker.mac, gateway6))
		})},
		"the host told by an advertisement that the victim is here": {try: hearBy(endpoint6, func(w *world) []byte {
			return ethernet(w.bridgeMAC, w.attacker.mac, unix.ETH_P_IPV6, advertisement(w.victim.ip6, gateway6, w.victim.ip6, w.attacker.mac))
		})},
		"a flood of MAC addresses": {try: flood},
	},
	reachNeighbour: {
		"an ARP answer that the gateway is here": {try: reach(func(w *world, mark []byte) []byte {
			return ethernet(w.victim.mac, w.attacker.mac, unix.ETH_P_ARP, arp(arpReply, w.attacker.mac, gateway4, w.victim.mac, w.victim.ip4), mark)
		})},
		"an ARP question from the endpoint": {try: reach(func(w *world, mark []byte) []byte {
			return ethernet(broadcast, w.attacker.mac, unix.ETH_P_ARP, arp(arpRequest, w.attacker.mac, endpoint4.Addr(), noMAC, w.victim.ip4), mark)
		})},
		"an advertisement that the IPv6 gateway is here": {try: reach(func(w *world, mark []byte) []byte {
			return ethernet(w.victim.mac, w.attacker.mac, unix.ETH_P_IPV6, advertisement(gateway6, w.victim.ip6, gateway6, w.attacker.mac, mark...))
		})},
		"a solicitation from the victim's neighbour": {try: reach(func(w *world, mark []byte) []byte {
			return ethernet(w.victim.mac, w.attacker.mac, unix.ETH_P_IPV6, solicitation(w.attacker.ip6, w.attacker.mac, w.victim.ip6, mark...))
		})},
		"a router advertisement to the victim": {try: reach(func(w *world, mark []byte) []byte {
			return ethernet(allNodesMAC, w.attacker.mac, unix.ETH_P_IPV6, router(linkLocal(w.attacker.mac), w.attacker.mac, mark...))
		})},
		"a rogue DHCP offer": {try: reach(func(w *world, mark []byte) []byte {
			src, dst := netip.AddrPortFrom(w.attacker.ip4, 67), netip.MustParseAddrPort("255.255.255.255:68")
			return ethernet(broadcast, w.attacker.mac, unix.ETH_P_IP, ip(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, udp(src, dst, append(make([]byte, 240), mark...))))
		})},
		"a BPDU": {try: reach(func(w *world, mark []byte) []byte {
			return ethernet(stpMAC, w.attacker.mac, 60, []byte{0x42, 0x42, 3}, make([]byte, 35), mark)
		})},
		"a raw frame to the victim":         {try: reach(raw)},
		"a frame of VLAN 5 to the victim":   {try: reach(func(w *world, mark []byte) []byte { return tagged(raw(w, mark), 5) })},
		"a priority-tagged frame to it":     {try: reach(func(w *world, mark []byte) []byte { return tagged(raw(w, mark), 0) })},
		"a doubly tagged frame to it":       {try: reach(func(w *world, mark []byte) []byte { return tagged(raw(w, mark), 5, 7) })},
		"TCP to the victim on the link":     {try: connect(onLink, func(w *world) netip.Addr { return w.victim.ip4 })},
		"TCP to the victim, routed by host": {try: connect(routed, func(w *world) netip.Addr { return w.victim.ip4 })},
		"IPv6 to the victim on the link":    {try: connect(onLink, func(w *world) netip.Addr { return w.victim.ip6 })},
		"UDP to the victim, routed by host": {try: datagram(toVictim, func(w *world, mark []byte) []byte {
			return udpFrame(w.bridgeMAC, w.attacker.mac, w.attacker.ip4, w.victim.ip4, mark)
		}), flushedLets: noRules},
		"UDP as the LAN to the victim, routed by host": {try: datagram(toVictim, func(w *world, mark []byte) []byte {
			return udpFrame(w.bridgeMAC, w.attacker.mac, lanOther, w.victim.ip4, mark)
		}), flushedLets: noRules},
	},
	reachBeyond: {
		"TCP to a service on the gateway's address":            {try: connect(routed, func(*world) netip.Addr { return gateway4 }), flushedLets: noRules, sourceLets: reachesHost},
		"TCP to a service on the endpoint's address":           {try: connect(routed, func(*world) netip.Addr { return endpoint4.Addr() }), flushedLets: noRules, sourceLets: reachesHost},
		"TCP to a service on the host's LAN address":           {try: connect(routed, func(*world) netip.Addr { return lanHost }), flushedLets: noRules, sourceLets: reachesHost},
		"IPv6 to a service on the gateway's address":           {try: connect(routed, func(*world) netip.Addr { return gateway6 }), flushedLets: noRules, sourceLets: reachesHost},
		"IPv6 to a service on the bridge's link-local address": {try: linkLocalService},
		"TCP to the LAN": {try: connect(routed, func(*world) netip.Addr { return lanOther }), flushedLets: noRules, sourceLets: "the LAN is beyond their gateway"},
		"UDP to the host as the victim": {try: datagram(toHost, func(w *world, mark []byte) []byte {
			return udpFrame(w.bridgeMAC, w.attacker.mac, w.victim.ip4, gateway4, mark)
		}), flushedLets: noRules},
		"UDP to the host as the LAN": {try: datagram(toHost, func(w *world, mark []byte) []byte {
			return udpFrame(w.bridgeMAC, w.attacker.mac, lanOther, gateway4, mark)
		}), flushedLets: noRules},
		"UDP to the LAN as the victim": {try: datagram(toLAN, func(w *world, mark []byte) []byte {
			return udpFrame(w.bridgeMAC, w.attacker.mac, w.victim.ip4, lanOther, mark)
		}), flushedLets: noRules},
		"IPv6 UDP to the host as the victim": {try: datagram(toHost, func(w *world, mark []byte) []byte {
			return udpFrame(w.bridgeMAC, w.attacker.mac, w.victim.ip6, gateway6, mark)
		}), flushedLets: noRules},
		"UDP to the host as the victim, priority-tagged": {try: datagram(toHost, func(w *world, mark []byte) []byte {
			return tagged(udpFrame(w.bridgeMAC, w.attacker.mac, w.victim.ip4, gateway4, mark), 0)
		}), flushedLets: noRules},
		"UDP to the host as the victim, broadcast": {try: datagram(toHost, func(w *world, mark []byte) []byte {
			return udpFrame(broadcast, w.attacker.mac, w.victim.ip4, gateway4, mark)
		}), flushedLets: noRules},
		"UDP to the host as the victim, in fragments": {try: fragments, flushedLets: noRules},
		"UDP to the host as the victim, past the bridge": {try: datagram(toHost, func(w *world, mark []byte) []byte {
			return udpFrame(lldpMAC, w.attacker.mac, w.victim.ip4, gateway4, mark)
		}), flushedLets: pastBridge},
		"LLDP to the host":                   {try: lldp, flushedLets: pastBridge},
		"a router advertisement to the host": {try: advertiseToHost},
	},
	noTask: {
		"the LAN asks the endpoint": {try: func(t testing.TB, w *world) bool { return answered(w.lan, net.Dialer{}, endpoint4, w.wait) }},
		"the LAN asks a service on the gateway's address": {try: func(t testing.TB, w *world) bool {
			return connects(w.lan, netip.AddrPortFrom(gateway4, servicePort), w.wait)
		}, flushedLets: onlyStrict, sourceLets: reachesHost},
		"the LAN asks a task": {try: func(t testing.TB, w *world) bool {
			return connects(w.lan, netip.AddrPortFrom(w.victim.ip4, servicePort), w.wait)
		}, flushedLets: onlyStrict, sourceLets: "a task that reaches the LAN is to hear its answers, and hears its questions too"},
		"UDP from the LAN as a task": {try: lanAsTask, flushedLets: onlyStrict},
		"a process of the host asks the endpoint": {try: func(t testing.TB, w *world) bool {
			return answered(w.host, net.Dialer{}, endpoint4, w.wait)
		}},
		"a process of the host bound to the bridge asks the endpoint": {try: func(t testing.TB, w *world) bool {
			return answered(w.host, bound("ecs-bridge"), endpoint4, w.wait)
		}},
		"a process of the host asks the IPv6 endpoint": {try: func(t testing.TB, w *world) bool {
			return answered(w.host, net.Dialer{}, endpoint6, w.wait)
		}, flushedLets: fromHost},
	},
}

// kernelAs asks with the victim's IP address on the attacker's own interface, and with its
// MAC address too if that is wanted.
func kernelAs(server netip.AddrPort, itsMAC bool) func(testing.TB, *world) bool {
	return func(t testing.TB, w *world) bool {
		own, victim := w.attacker.Namespace, w.victim.at(server.Addr())
		sh(t, own, "ip addr add %s/%d dev eth0 $(test %v = false || echo nodad) && ip neigh flush dev eth0", victim, victim.BitLen(), victim.Is6())
		defer sh(t, own, "ip addr del %s/%d dev eth0 && ip neigh flush dev eth0", victim, victim.BitLen())
		if itsMAC {
			sh(t, own, "ip link set eth0 address %s", w.victim.mac)
			defer sh(t, own, "ip link set eth0 address %s", w.attacker.mac)
		}
		_, body, _ := ask(own, victim, metadataURL(server), w.wait)
		return strings.Contains(body, w.victim.arn)
	}
}

// Whose MAC address a forged frame bears.
func ownMAC(w *world) net.HardwareAddr    { return w.attacker.mac }
func victimMAC(w *world) net.HardwareAddr { return w.victim.mac }
func bridgeMAC(w *world) net.HardwareAddr { return w.bridgeMAC }

// What is done to a frame before it is sent.
func untagged(frame []byte) []byte    { return frame }
func prioritized(frame []byte) []byte { return tagged(frame, 0) }

func toBroadcast(frame []byte) []byte { return slices.Concat(broadcast, frame[6:]) }
func toLLDP(frame []byte) []byte      { return slices.Concat(lldpMAC, frame[6:]) }

// withOptions puts four no-operations into an IPv4 header.
func withOptions(frame []byte) []byte {
	p := frame[14:]
	src, _ := netip.AddrFromSlice(p[12:16])
	dst, _ := netip.AddrFromSlice(p[16:20])
	return slices.Concat(frame[:14], ip4(src, dst, int(p[9]), 0, []byte{1, 1, 1, 1}, p[20:]))
}

// handshake speaks TCP to the endpoint as the victim, by frames alone.
func handshake(server netip.AddrPort, from func(*world) net.HardwareAddr, change func([]byte) []byte) func(testing.TB, *world) bool {
	return func(t testing.TB, w *world) bool {
		return w.forge(t, tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL), server, from(w), change)
	}
}

// forge asks the endpoint in the victim's name on a wire, and reports whether the answer
// that came back there is the victim's.
func (w *world) forge(t testing.TB, line *wire, server netip.AddrPort, mac net.HardwareAddr, change func([]byte) []byte) bool {
	t.Helper()
	client := netip.AddrPortFrom(w.victim.at(server.Addr()), uint16(20_000+rand.IntN(10_000)))
	send := func(seq, acked uint32, flags byte, payload string) {
		segment := tcp(client, server, seq, acked, flags, []byte(payload))
		line.send(t, change(ethernet(w.bridgeMAC, mac, etherType(client.Addr()), ip(client.Addr(), server.Addr(), unix.IPPROTO_TCP, segment))))
	}
	// First the host is told where the victim is.
	if server.Addr().Is6() {
		line.send(t, change(ethernet(w.bridgeMAC, mac, unix.ETH_P_IPV6, solicitation(client.Addr(), mac, gateway6))))
	} else {
		line.send(t, tagless(change)(ethernet(broadcast, mac, unix.ETH_P_ARP, arp(arpRequest, mac, client.Addr(), noMAC, gateway4))))
	}
	const first = 1_000_000
	send(first, 0, syn, "")
	var heard []byte
	return line.receive(t, time.Now().Add(w.wait), func(frame []byte) bool {
		s, ok := segmentIn(frame)
		if !ok || s.src != server || s.dst != client {
			return false
		}
		switch {
		case s.flags&(syn|ack) == syn|ack:
			request := "GET /v2/metadata HTTP/1.1\r\nHost: " + server.Addr().String() + "\r\n\r\n"
			if server.Addr().Is6() {
				request = strings.Replace(request, server.Addr().String(), "["+server.Addr().String()+"]", 1)
			}
			send(first+1, s.seq+1, ack, "")
			send(first+1, s.seq+1, ack|psh, request)
		default:
			heard = append(heard, s.payload...)
		}
		return bytes.Contains(heard, []byte(w.victim.arn))
	})
}

// tagless is what change does to frames that are not IP: a tag it puts on, all else not.
func tagless(change func([]byte) []byte) func([]byte) []byte {
	return func(frame []byte) []byte {
		probe := make([]byte, 60)
		probe[14] = 0x45
		if c := change(probe); bytes.Equal(c[12:14], be16(unix.ETH_P_8021Q)) {
			return change(frame)
		}
		return frame
	}
}

// A segment is what is read of a TCP segment that came in.
type segment struct {
	src, dst netip.AddrPort
	seq      uint32
	flags    byte
	payload  []byte
}

func segmentIn(frame []byte) (s segment, ok bool) {
	if len(frame) < 14+20+20 {
		return s, false
	}
	p := frame[14:]
	var src, dst netip.Addr
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		if p[9] != unix.IPPROTO_TCP {
			return s, false
		}
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		p = p[:min(len(p), int(binary.BigEndian.Uint16(p[2:])))][20:]
	case unix.ETH_P_IPV6:
		if len(p) < 60 || p[6] != unix.IPPROTO_TCP {
			return s, false
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		p = p[40:]
	default:
		return s, false
	}
	if len(p) < 20 || len(p) < int(p[12]>>4)*4 {
		return s, false
	}
	s.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(p))
	s.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[2:]))
	s.seq, s.flags, s.payload = binary.BigEndian.Uint32(p[4:]), p[13], p[int(p[12]>>4)*4:]
	return s, true
}

// asGateway sends a datagram as the host itself.
func asGateway(t testing.TB, w *world) bool {
	return datagram(toHost, func(w *world, mark []byte) []byte {
		return udpFrame(w.bridgeMAC, w.attacker.mac, gateway4, gateway4, mark)
	})(t, w)
}

// hear sends a frame over and over while the victim asks, and listens for its answers.
func hear(frame func(*world) []byte) func(testing.TB, *world) bool { return hearBy(endpoint4, frame) }

func hearBy(server netip.AddrPort, frame func(*world) []byte) func(testing.TB, *world) bool {
	return func(t testing.TB, w *world) bool {
		line := tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL)
		until := time.Now().Add(w.wait)
		var victim sync.WaitGroup
		victim.Go(func() {
			for time.Now().Before(until) {
				_, _, _ = ask(w.victim.Namespace, w.victim.at(server.Addr()), metadataURL(server), 300*time.Millisecond)
			}
		})
		defer victim.Wait()
		for time.Now().Before(until) {
			line.send(t, frame(w))
			if line.hears(t, time.Now().Add(time.Millisecond), []byte(w.victim.arn)) {
				return true
			}
		}
		return false
	}
}

func claim4(op int) func(*world) []byte {
	return func(w *world) []byte {
		return ethernet(w.bridgeMAC, w.attacker.mac, unix.ETH_P_ARP, arp(op, w.attacker.mac, w.victim.ip4, w.bridgeMAC, gateway4))
	}
}

// flood sends from many MAC addresses; the bridge learns them or does not.
func flood(t testing.TB, w *world) bool {
	line := tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL)
	known := func() (n int) {
		err := w.host.Do(func() error {
			for {
				entries, err := netlink.NeighList(0, unix.AF_BRIDGE)
				if n = len(entries); err == nil || !strings.Contains(err.Error(), "interrupted") {
					return err
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := known()
	for i := range testnet.Soak(2_000, 20_000) {
		line.send(t, ethernet(broadcast, net.HardwareAddr{2, 0xaa, 0, byte(i >> 16), byte(i >> 8), byte(i)}, 0x88b5))
	}
	return known() > before+1_000
}

// mark is what no other frame has in it.
func mark() []byte { return fmt.Appendf(nil, "attack%016x", rand.Uint64()) }

// raw is a frame to the victim of a type that nobody uses.
func raw(w *world, mark []byte) []byte { return ethernet(w.victim.mac, w.attacker.mac, 0x88b5, mark) }

// reach sends a frame with a mark and looks whether it comes to the victim.
func reach(frame func(w *world, mark []byte) []byte) func(testing.TB, *world) bool {
	return func(t testing.TB, w *world) bool {
		there := tap(t, w.victim.Namespace, "eth0", unix.ETH_P_ALL)
		m := mark()
		tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL).send(t, frame(w, m))
		return there.hears(t, time.Now().Add(w.wait), m)
	}
}

// connects reports whether a TCP connection comes about.
func connects(from *testnet.Namespace, to netip.AddrPort, wait time.Duration) bool {
	return connectsBy(from, net.Dialer{Timeout: wait}, to)
}

func connectsBy(from *testnet.Namespace, by net.Dialer, to netip.AddrPort) bool {
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = by.Dial("tcp", to.String())
		return err
	})
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// How the attacker's kernel is told to send to an address.
const (
	onLink = "ip route replace %s dev eth0"
	routed = "ip route replace %s via %s dev eth0 onlink"
)

// connect is connects from the attacker, by a route of its own making.
func connect(by string, to func(*world) netip.Addr) func(testing.TB, *world) bool {
	return func(t testing.TB, w *world) bool {
		addr := to(w)
		gateway := gateway4
		if addr.Is6() {
			gateway = gateway6
		}
		if addr != gateway { // it has a route there
			if by == onLink {
				sh(t, w.attacker.Namespace, onLink, addr)
			} else {
				sh(t, w.attacker.Namespace, routed, addr, gateway)
			}
			if addr != endpoint4.Addr() { // where its own route was the same
				defer sh(t, w.attacker.Namespace, "ip route del %s", addr)
			}
		}
		return connects(w.attacker.Namespace, netip.AddrPortFrom(addr, servicePort), w.wait)
	}
}

func toHost(w *world) *sink   { return w.hostGot }
func toVictim(w *world) *sink { return w.victimGot }
func toLAN(w *world) *sink    { return w.lanGot }

// udpFrame is a datagram from any port to servicePort.
func udpFrame(dstMAC, srcMAC net.HardwareAddr, from, to netip.Addr, payload []byte) []byte {
	src, dst := netip.AddrPortFrom(from, 4242), netip.AddrPortFrom(to, servicePort)
	return ethernet(dstMAC, srcMAC, etherType(from), ip(from, to, unix.IPPROTO_UDP, udp(src, dst, payload)))
}

// datagram sends a frame with a datagram and looks whether it comes to a sink.
func datagram(to func(*world) *sink, frame func(*world, []byte) []byte) func(testing.TB, *world) bool {
	return func(t testing.TB, w *world) bool {
		m := mark()
		tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL).send(t, frame(w, m))
		return to(w).hears(time.Now().Add(w.wait), m)
	}
}

// fragments sends a datagram in two of them.
func fragments(t testing.TB, w *world) bool {
	m := mark()
	src, dst := netip.AddrPortFrom(w.victim.ip4, 4242), netip.AddrPortFrom(gateway4, servicePort)
	whole := udp(src, dst, slices.Concat(make([]byte, 16), m))
	const cut, more = 16, 0x2000
	line := tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL)
	for _, p := range [][]byte{
		ip4(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, more, nil, whole[:cut]),
		ip4(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, cut/8, nil, whole[cut:]),
	} {
		// Trailing bytes of a short frame are the Ethernet's, not the fragment's.
		line.send(t, ethernet(w.bridgeMAC, w.attacker.mac, unix.ETH_P_IP, p))
	}
	return w.hostGot.hears(time.Now().Add(w.wait), m)
}

// lldp speaks to a daemon of the host's that listens at the port for what bridges keep to
// themselves.
func lldp(t testing.TB, w *world) bool {
	there := tap(t, w.host, w.attacker.veth, unix.ETH_P_LLDP)
	m := mark()
	tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL).send(t, ethernet(lldpMAC, w.attacker.mac, unix.ETH_P_LLDP, m))
	return there.hears(t, time.Now().Add(w.wait), m)
}

// advertiseToHost wants to be the host's router.
func advertiseToHost(t testing.TB, w *world) bool {
	tap(t, w.attacker.Namespace, "eth0", unix.ETH_P_ALL).send(t,
		ethernet(allNodesMAC, w.attacker.mac, unix.ETH_P_IPV6, router(linkLocal(w.attacker.mac), w.attacker.mac)))
	for until := time.Now().Add(w.wait); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if strings.Contains(sh(t, w.host, "ip -6 route show default"), "ecs-bridge") {
			return true
		}
	}
	return false
}

// linkLocalService looks for a service of the host's where a bridge has an address of its
// MAC's making.
func linkLocalService(t testing.TB, w *world) bool {
	sh(t, w.attacker.Namespace, "ip addr replace %s/64 dev eth0 nodad", linkLocal(w.attacker.mac))
	// By a socket that is bound: the library keeps what it has read of names, whatever the
	// namespace, and takes no number as large as that of a task's interface.
	by := bound("eth0")
	by.Timeout = w.wait
	return connectsBy(w.attacker.Namespace, by, netip.AddrPortFrom(linkLocal(w.bridgeMAC), servicePort))
}

// lanAsTask sends from the LAN to the bridge's address what says that it comes from the victim.
// What is for the host's other addresses is between the LAN and the host, who may have such
// addresses too.
func lanAsTask(t testing.TB, w *world) bool {
	own, host := macOf(t, w.lan, "eth0"), macOf(t, w.host, "lan0")
	m := mark()
	tap(t, w.lan, "eth0", unix.ETH_P_ALL).send(t, udpFrame(host, own, w.victim.ip4, gateway4, m))
	return w.hostGot.hears(time.Now().Add(w.wait), m)
}

func macOf(t testing.TB, ns *testnet.Namespace, ifname string) (mac net.HardwareAddr) {
	t.Helper()
	err := ns.Do(func() error {
		link, err := net.InterfaceByName(ifname)
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// answered reports whether the resolver says anything at all.
func answered(from *testnet.Namespace, by net.Dialer, server netip.AddrPort, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	_, _, err := from.AskBy(ctx, by, metadataURL(server))
	return err == nil
}
