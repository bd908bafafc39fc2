package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/rtnl"
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

// ntfSticky is of linux/neighbour.h: a static entry alone moves to another port that sends
// from the address.
const ntfSticky = 1 << 6

// Attach sets the flags of the bridge port, and enters the task's MAC address for that
// port alone and its IP addresses for that MAC address, for good. The link must be a
// port of the bridge already, and must not be up yet.
func (p Port) Attach(c *rtnl.Conn) error {
	if p.Mode == Off {
		return nil
	}
	port := rtnl.Neighbour{Index: p.LinkIndex, MAC: p.MAC, State: unix.NUD_NOARP, Flags: unix.NTF_MASTER | ntfSticky}
	steps := []rtnl.Step{setPortFlags(p.Link, p.LinkIndex), port.Set(fmt.Sprintf("entering %s for port %s of %s", p.MAC, p.Link, p.Bridge))}
	for _, own := range p.Addrs {
		// A port that is not flooded hears no question: the answer must be there.
		n := rtnl.Neighbour{Index: p.BridgeIndex, Addr: own.Addr(), MAC: p.MAC, State: unix.NUD_PERMANENT}
		steps = append(steps, n.Set(fmt.Sprintf("entering %s for %s on %s", p.MAC, own.Addr(), p.Bridge)))
	}
	return c.Do(steps...)
}

// setPortFlags is the step that sets all flags.
func setPortFlags(name string, link int) rtnl.Step {
	info := nl.NewIfInfomsg(unix.AF_BRIDGE)
	info.Index = int32(link)
	flags := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, f := range portFlags {
		flags.AddRtAttr(f.attribute, []byte{f.value})
	}
	return rtnl.NewStep(unix.RTM_SETLINK, 0, "setting the flags of bridge port "+name, info, flags)
}

// atOnce is how many entries are deleted by one send: the answers to more would not fit in
// the socket.
const atOnce = 64

// forget deletes the permanent neighbours of a bridge that have these addresses, if they and
// it exist, and then ends the namespace's TCP connections with them.
func forget(c *rtnl.Conn, bridge string, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	switch l, err := c.Link(bridge); {
	case errors.Is(err, unix.ENODEV): // they are gone with it
	case err != nil:
		return err
	default:
		if err := delNeighbours(c, l, addrs); err != nil {
			return err
		}
	}
	diag, err := sockdiag.Open(c.NS)
	if err != nil {
		return err
	}
	defer diag.Close()
	for _, addr := range addrs {
		// Where the kernel cannot, the resolver does so when it sees that the link is gone.
		if err := diag.Destroy(addr); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("ending the connections of %s: %w", addr, err)
		}
	}
	return nil
}

func delNeighbours(c *rtnl.Conn, bridge rtnl.Link, addrs []netip.Addr) error {
	for some := range slices.Chunk(addrs, atOnce) {
		var steps []rtnl.Step
		for _, addr := range some {
			s := rtnl.Neighbour{Index: bridge.Index, Addr: addr}.Del(fmt.Sprintf("deleting the neighbour %s on %s", addr, bridge.Name))
			s.Fine = unix.ENOENT
			steps = append(steps, s)
		}
		if err := c.Do(steps...); err != nil {
			return err
		}
	}
	return nil
}
