// Package guard makes a source address on the bridge mean something: a task's port lets
// out nothing but what the task may send, and the host's own address for tasks is
// reached by tasks alone. Three layers say so: a netdev chain on each port, the flags of
// the bridge port, and one table for the host. See docs/security.md.
//
// Every call acts in the network namespace of the route socket that it is given, and
// everything it does may be repeated.
package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/rtnl"
)

// A Mode says how much a port lets out.
type Mode string

const (
	// Strict lets out the address resolution of the gateway and requests to the endpoint.
	Strict Mode = "strict"
	// Source lets out what goes to a gateway or beyond the task's subnet, from the task's
	// own addresses.
	Source Mode = "source"
	// Off leaves a plain bridge port.
	Off Mode = "off"
)

// ParseMode reads the value of a configuration key; an empty one is [Strict].
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Strict, nil
	case Strict, Source, Off:
		return m, nil
	}
	return "", fmt.Errorf("guard %q: expected %q, %q or %q", s, Strict, Source, Off)
}

// A Port is one task's way onto the bridge, and what it may send there.
type Port struct {
	Mode Mode
	// Link is the name of the veth's host end, LinkIndex its index, and MAC the address of
	// the task's end.
	Link      string
	LinkIndex int
	MAC       net.HardwareAddr
	// Addrs are the task's, each with the length of its subnet.
	Addrs []netip.Prefix
	// Gateways are the next hops of the task's routes: the addresses whose MAC address it
	// may ask for.
	Gateways []netip.Addr
	// Bridge is the bridge's name, BridgeIndex its index and BridgeMAC its address.
	Bridge      string
	BridgeIndex int
	BridgeMAC   net.HardwareAddr
}

// Install gives the port its chain, whole and at once. It comes before the link is up;
// the link must exist. Its chain drops what no rule accepts.
func (p Port) Install(c *rtnl.Conn) error {
	if p.Mode == Off {
		return nil
	}
	// A chain that a killed ADD of this attachment left behind goes first: what it holds
	// may be of another address.
	return p.install(c, true)
}

// install sends the chain with its rules, after what it may hold already or in its place.
func (p Port) install(c *rtnl.Conn, alone bool) error {
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	chain := portChain(p.Link)
	conn.AddTable(chain.Table)
	conn.AddChain(chain)
	if alone {
		conn.FlushChain(chain)
	}
	for _, r := range p.rules() {
		r.Table, r.Chain = chain.Table, chain
		conn.AddRule(r)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("installing chain %s of table netdev %s: %w", chain.Name, tableName, explain(err))
	}
	return nil
}

const (
	tableName   = "ecs_guard"
	chainPrefix = "in-"
)

func portTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: tableName}
}

// portChain is the chain of the port named link.
func portChain(link string) *nftables.Chain {
	drop := nftables.ChainPolicyDrop
	return &nftables.Chain{
		Name:     chainPrefix + link,
		Table:    portTable(),
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter,
		Device:   link,
		Policy:   &drop,
	}
}

// rules are those of the port's chain, in order. Each that accepts bears the task's
// address as its comment, from which DEL learns it. All matches are on bytes at their
// place in an untagged frame: a match by name would also read a frame with a priority
// tag, whose headers stand elsewhere for the bridge.
func (p Port) rules() []*nftables.Rule {
	var rules []*nftables.Rule
	for _, own := range p.Addrs {
		accept := func(matches ...[]expr.Any) {
			rules = append(rules, &nftables.Rule{
				Exprs:    join(join(matches...), counter(), verdict(expr.VerdictAccept)),
				UserData: userdata.AppendString(nil, userdata.TypeComment, own.Addr().String()),
			})
		}
		for _, gateway := range p.Gateways {
			if gateway.Is4() == own.Addr().Is4() {
				accept(p.resolve(own.Addr(), gateway))
			}
		}
		header := p.header(own.Addr())
		switch {
		case p.Mode == Source:
			for _, gateway := range p.Gateways {
				if gateway.Is4() == own.Addr().Is4() {
					accept(header, destination(gateway))
				}
			}
			accept(header, outside(own))
		case own.Addr().Is4():
			accept(header, request4(), destination(ecs.EndpointAddr))
		default:
			for _, gateway := range p.Gateways {
				if gateway.Is6() {
					accept(header, request6(), destination(gateway))
				}
			}
		}
	}
	return append(rules, &nftables.Rule{Exprs: join(counter(), verdict(expr.VerdictDrop))})
}

// resolve matches the question for the gateway's MAC address, asked with the task's own
// addresses in every place: ARP (RFC 826), or a neighbour solicitation of IPv6 with the
// sender's link-layer address and no other option (RFC 4861, section 4.3).
func (p Port) resolve(own, gateway netip.Addr) []expr.Any {
	if own.Is4() {
		return join(
			eq(expr.PayloadBaseLLHeader, 6, p.MAC, be16(unix.ETH_P_ARP)),
			eq(expr.PayloadBaseNetworkHeader, 0, []byte{0, 1, 8, 0, 6, 4, 0, 1}, p.MAC), // Ethernet, IPv4, 6 and 4 bytes, request
			eq(expr.PayloadBaseNetworkHeader, 14, own.AsSlice()),
			eq(expr.PayloadBaseNetworkHeader, 24, gateway.AsSlice()),
		)
	}
	return join(
		eq(expr.PayloadBaseLLHeader, 6, p.MAC, be16(unix.ETH_P_IPV6)),
		eq(expr.PayloadBaseNetworkHeader, 4, []byte{0, 32, unix.IPPROTO_ICMPV6, 255}), // length, next header, hop limit
		eq(expr.PayloadBaseNetworkHeader, 8, own.AsSlice()),
		eq(expr.PayloadBaseNetworkHeader, 40, []byte{solicit, 0}),
		eq(expr.PayloadBaseNetworkHeader, 48, gateway.AsSlice()),
		eq(expr.PayloadBaseNetworkHeader, 64, []byte{1, 1}, p.MAC), // source link-layer address, 8 bytes
	)
}

// solicit is the ICMPv6 type of a neighbour solicitation.
const solicit = 135

// header matches an IP packet from the task's MAC and IP address to the bridge.
func (p Port) header(own netip.Addr) []expr.Any {
	etherType := be16(unix.ETH_P_IP)
	if own.Is6() {
		etherType = be16(unix.ETH_P_IPV6)
	}
	return join(
		eq(expr.PayloadBaseLLHeader, 0, p.BridgeMAC, p.MAC, etherType),
		eq(expr.PayloadBaseNetworkHeader, sourceOffset(own), own.AsSlice()),
	)
}

// request4 matches TCP to the endpoint's port in an IPv4 packet without options (which
// puts the port at byte 22) that is no fragment.
func request4() []expr.Any {
	return join(
		eq(expr.PayloadBaseNetworkHeader, 0, []byte{0x45}),
		masked(expr.PayloadBaseNetworkHeader, 6, be16(0x3fff), expr.CmpOpEq, be16(0)),
		eq(expr.PayloadBaseNetworkHeader, 9, []byte{unix.IPPROTO_TCP}),
		eq(expr.PayloadBaseNetworkHeader, 22, be16(ecs.EndpointPort)),
	)
}

// request6 matches TCP to the endpoint's port in an IPv6 packet without extension
// headers, of which a fragment's is one.
func request6() []expr.Any {
	return join(
		eq(expr.PayloadBaseNetworkHeader, 6, []byte{unix.IPPROTO_TCP}),
		eq(expr.PayloadBaseNetworkHeader, 42, be16(ecs.EndpointPort)),
	)
}

// sourceOffset is where the source stands in the IP header of addr's family.
func sourceOffset(addr netip.Addr) uint32 {
	if addr.Is4() {
		return 12
	}
	return 8
}

// destinationOffset is where the destination stands in the IP header of addr's family.
func destinationOffset(addr netip.Addr) uint32 {
	if addr.Is4() {
		return 16
	}
	return 24
}

func destination(addr netip.Addr) []expr.Any {
	return eq(expr.PayloadBaseNetworkHeader, destinationOffset(addr), addr.AsSlice())
}

// outside matches a destination that is not in the subnet of own.
func outside(own netip.Prefix) []expr.Any {
	mask := net.CIDRMask(own.Bits(), own.Addr().BitLen())
	return masked(expr.PayloadBaseNetworkHeader, destinationOffset(own.Addr()), mask, expr.CmpOpNeq, own.Masked().Addr().AsSlice())
}

// Remove takes away what Install and Attach made for the port named link: the
// permanent neighbours, then the host's TCP connections with the task, then the chain.
// It comes after the link is deleted and before the addresses are freed. The chain names
// the addresses; where a guarded port has none, since somebody has flushed it, they are
// those that no port of the bridge has, which takes longer the more ports there are. What
// is gone already, the bridge included, is no error.
func Remove(c *rtnl.Conn, bridge, link string, guarded bool) error {
	rules, err := installed(c, link)
	if err != nil {
		return err
	}
	there := len(rules) > 0
	switch {
	case there:
		err = forget(c, bridge, named(rules))
	case guarded:
		err = sweepNeighbours(c, bridge)
	}
	if err == nil && !there {
		there, err = exists(c, link)
	}
	if err != nil || !there {
		return err // a request to delete nothing takes the kernel as long as another
	}
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	conn.DelChain(portChain(link))
	if err := conn.Flush(); err != nil && !gone(err) {
		return fmt.Errorf("deleting the chain of port %s: %w", link, explain(err))
	}
	return nil
}

// gone reports whether err says that a thing to be removed does not exist.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
