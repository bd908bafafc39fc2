package guard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/sockdiag"
)

// portFlags are the bridge port's settings: it talks to the bridge's own address and to
// no other port, teaches the bridge nothing, and is not flooded. They hold whatever
// becomes of nftables. A kernel before 5.18 knows no lock and passes over it.
var portFlags = []struct {
	attribute int
	name      string
	value     byte
}{
	{unix.IFLA_BRPORT_ISOLATED, "isolated", 1},
	{unix.IFLA_BRPORT_LEARNING, "learning", 0},
	{unix.IFLA_BRPORT_LOCKED, "locked", 1},
	{unix.IFLA_BRPORT_GUARD, "guard", 1},
	{unix.IFLA_BRPORT_UNICAST_FLOOD, "flood", 0},
	{unix.IFLA_BRPORT_MCAST_FLOOD, "mcast_flood", 0},
	{unix.IFLA_BRPORT_BCAST_FLOOD, "bcast_flood", 0},
}

// Attach sets the flags of the bridge port, and enters the task's MAC address for that
// port alone and its IP addresses for that MAC address, for good. The link must be a
// port of the bridge already, and must not be up yet.
func (p Port) Attach() error {
	if p.Mode == Off {
		return nil
	}
	bridge, link, err := p.indices()
	if err != nil {
		return err
	}
	if err := setPortFlags(link); err != nil {
		return fmt.Errorf("setting the flags of bridge port %s: %w", p.Link, err)
	}
	// Sticky: a static entry alone moves to another port that sends from the address.
	err = netlink.NeighSet(&netlink.Neigh{
		Family: unix.AF_BRIDGE, LinkIndex: link, HardwareAddr: p.MAC,
		State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER | netlink.NTF_STICKY,
	})
	if err != nil {
		return fmt.Errorf("entering %s for port %s of %s: %w", p.MAC, p.Link, p.Bridge, err)
	}
	for _, own := range p.Addrs {
		// A port that is not flooded hears no question: the answer must be there.
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: bridge, IP: own.Addr().AsSlice(), HardwareAddr: p.MAC, State: netlink.NUD_PERMANENT,
		})
		if err != nil {
			return fmt.Errorf("entering %s for %s on %s: %w", p.MAC, own.Addr(), p.Bridge, err)
		}
	}
	return nil
}

func (p Port) indices() (bridge, link int, err error) {
	bridge, link = p.BridgeIndex, p.LinkIndex
	if bridge == 0 {
		if bridge, err = index(p.Bridge); err != nil {
			return 0, 0, err
		}
	}
	if link == 0 {
		link, err = index(p.Link)
	}
	return bridge, link, err
}

func index(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("finding link %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

// setPortFlags sends all flags in one request, which the library has no call for.
func setPortFlags(link int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(link)
	req.AddData(msg)
	flags := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, f := range portFlags {
		flags.AddRtAttr(f.attribute, []byte{f.value})
	}
	req.AddData(flags)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// forget deletes the permanent neighbours of a bridge that have these addresses, if they and
// it exist, and then ends the host's TCP connections with them.
func forget(bridge string, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	i, err := index(bridge)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
	case err != nil:
		return err
	default:
		for _, addr := range addrs {
			err := netlink.NeighDel(&netlink.Neigh{LinkIndex: i, IP: net.IP(addr.AsSlice())})
			if err != nil && !gone(err) {
				return fmt.Errorf("deleting the neighbour %s on %s: %w", addr, bridge, err)
			}
		}
	}
	for _, addr := range addrs {
		// Where the kernel cannot, the resolver does so when it sees that the link is gone.
		if err := sockdiag.Destroy(addr); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("ending the connections of %s: %w", addr, err)
		}
	}
	return nil
}
