package guard

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrOpen: something of the guard that should be there is not.
var ErrOpen = errors.New("the guard is not whole")

// Check reports whether everything that Install and Attach make is there; an [ErrOpen]
// names what is not.
func (p Port) Check() error {
	if p.Mode == Off {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	chain := portChain(p.Link)
	rules, err := conn.GetRules(chain.Table, chain)
	if err != nil {
		return fmt.Errorf("reading chain %s of table netdev %s: %w", chain.Name, tableName, explain(err))
	}
	if !same(nftables.TableFamilyNetdev, rules, p.rules()) {
		return fmt.Errorf("%w: chain %s of table netdev %s is missing or was changed", ErrOpen, chain.Name, tableName)
	}
	bridge, link, err := p.indices()
	if err != nil {
		return err
	}
	if err := checkPortFlags(link); err != nil {
		return fmt.Errorf("bridge port %s: %w", p.Link, err)
	}
	return p.checkEntries(bridge, link)
}

// checkEntries looks the task's MAC and IP addresses up one by one: their number does
// not grow with that of the ports, as that of all entries does.
func (p Port) checkEntries(bridge, link int) error {
	entry, err := neighbour(unix.AF_BRIDGE, bridge, netlink.NTF_SELF, netlink.NDA_LLADDR, p.MAC)
	if err != nil {
		return fmt.Errorf("looking %s up on %s: %w", p.MAC, p.Bridge, err)
	}
	if entry == nil || entry.LinkIndex != link || entry.Flags&netlink.NTF_STICKY == 0 || entry.State&netlink.NUD_NOARP == 0 {
		return fmt.Errorf("%w: %s has no sticky entry that puts %s on port %s", ErrOpen, p.Bridge, p.MAC, p.Link)
	}
	for _, own := range p.Addrs {
		family := uint8(unix.AF_INET)
		if own.Addr().Is6() {
			family = unix.AF_INET6
		}
		entry, err := neighbour(family, bridge, 0, netlink.NDA_DST, own.Addr().AsSlice())
		if err != nil {
			return fmt.Errorf("looking %s up on %s: %w", own.Addr(), p.Bridge, err)
		}
		if entry == nil || entry.State&netlink.NUD_PERMANENT == 0 || !slices.Equal(entry.HardwareAddr, p.MAC) {
			return fmt.Errorf("%w: %s has no permanent neighbour %s at %s", ErrOpen, p.Bridge, own.Addr(), p.MAC)
		}
	}
	return nil
}

// neighbour asks for one entry, nil if there is none: the library has only the list.
func neighbour(family uint8, link int, flags uint8, key int, value []byte) (*netlink.Neigh, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: family, Index: uint32(link), Flags: flags})
	req.AddData(nl.NewRtAttr(key, value))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, fmt.Errorf("the kernel gave %d answers", len(answers))
	}
	return netlink.NeighDeserialize(answers[0])
}

// checkPortFlags compares the flags of a bridge port with what they should be; one that
// the kernel does not know is left out.
func checkPortFlags(link int) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link)
	req.AddData(msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return fmt.Errorf("reading its settings: %w", err)
	}
	attrs, err := nl.ParseRouteAttr(answers[0][nl.NewIfInfomsg(unix.AF_UNSPEC).Len():])
	if err != nil {
		return fmt.Errorf("reading its settings: %w", err)
	}
	for _, nested := range []uint16{unix.IFLA_LINKINFO, unix.IFLA_INFO_SLAVE_DATA} {
		i := slices.IndexFunc(attrs, func(a syscall.NetlinkRouteAttr) bool { return a.Attr.Type&nl.NLA_TYPE_MASK == nested })
		if i < 0 {
			return fmt.Errorf("%w: it is not a port of a bridge", ErrOpen)
		}
		if attrs, err = nl.ParseRouteAttr(attrs[i].Value); err != nil {
			return fmt.Errorf("reading its settings: %w", err)
		}
	}
	for _, f := range portFlags {
		for _, a := range attrs {
			if int(a.Attr.Type) == f.attribute && a.Value[0] != f.value {
				return fmt.Errorf("%w: %s is %d, not %d", ErrOpen, f.name, a.Value[0], f.value)
			}
		}
	}
	return nil
}

// same compares rules by what they tell the kernel, their counts apart.
func same(family nftables.TableFamily, a, b []*nftables.Rule) bool {
	return slices.EqualFunc(a, b, func(a, b *nftables.Rule) bool {
		return slices.EqualFunc(a.Exprs, b.Exprs, func(a, b expr.Any) bool {
			_, counts := a.(*expr.Counter)
			_, counted := b.(*expr.Counter)
			if counts || counted {
				return counts == counted
			}
			x, err := expr.Marshal(byte(family), a)
			if err != nil {
				return false
			}
			y, err := expr.Marshal(byte(family), b)
			return err == nil && slices.Equal(x, y)
		})
	})
}
