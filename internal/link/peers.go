package link

import (
	"fmt"
	"net/netip"
)

// A Peer is an end of a veth pair whose other end is in another network namespace.
type Peer struct {
	Addrs []netip.Prefix
	// Other is the index of the other end, in the namespace that it is in.
	Other int
	// Netns is the host's namespace's ID for the one that the peer is in.
	Netns int
}

// Peers returns those in the network namespace at path whose other ends are in the host's.
func (h *Host) Peers(path string) (peers []Peer, err error) {
	err = inspect(path, func(c conn) error {
		id, err := h.NetnsID(c.NS)
		if err != nil {
			return err
		}
		links, err := c.Links()
		if err != nil {
			return err
		}
		here, err := c.NetnsID(h.NS) // which listing the links has given it, if one's other end is here
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Kind != "veth" || l.PeerNetns < 0 || l.PeerNetns != here {
				continue
			}
			addrs, err := c.Addrs(l.Index)
			if err != nil {
				return fmt.Errorf("of %s: %w", l.Name, err)
			}
			p := Peer{Other: l.Peer, Netns: id}
			for _, a := range addrs {
				if a.Global {
					p.Addrs = append(p.Addrs, a.Prefix)
				}
			}
			peers = append(peers, p)
		}
		return nil
	})
	return peers, err
}
