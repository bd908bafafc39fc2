package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Peer is an end of a veth pair whose other end is in another network namespace.
type Peer struct {
	IfName string
	MAC    net.HardwareAddr
	Addrs  []netip.Prefix
	// Other is the index of the other end, in the namespace that it is in.
	Other int
	// Netns is the caller's namespace's ID for the one that the peer is in.
	Netns int
}

// Peers returns those in the network namespace at path.
func Peers(path string) ([]Peer, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("opening network namespace %s: %w", path, err)
	}
	defer ns.Close()
	id, err := netlink.GetNetNsIdByFd(int(ns))
	if err != nil {
		return nil, fmt.Errorf("asking for the ID of network namespace %s: %w", path, err)
	}
	var peers []Peer
	err = inspectNS(ns, func(h *netlink.Handle) error {
		links, err := consistent(h.LinkList)
		if err != nil {
			return fmt.Errorf("listing interfaces: %w", err)
		}
		for _, l := range links {
			a := l.Attrs()
			if l.Type() != "veth" || a.NetNsID < 0 {
				continue
			}
			p := Peer{IfName: a.Name, MAC: a.HardwareAddr, Other: a.ParentIndex, Netns: id}
			addrs, err := consistent(func() ([]netlink.Addr, error) { return h.AddrList(l, unix.AF_UNSPEC) })
			if err != nil {
				return fmt.Errorf("listing the addresses of %s: %w", a.Name, err)
			}
			for _, addr := range addrs {
				if prefix, ok := prefix(addr.IPNet); ok && addr.Scope == unix.RT_SCOPE_UNIVERSE {
					p.Addrs = append(p.Addrs, prefix)
				}
			}
			peers = append(peers, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return peers, nil
}
