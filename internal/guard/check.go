package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"taskmeta/internal/rtnl"
)

// ErrOpen: something of the guard that should be there is not.
var ErrOpen = errors.New("the guard is not whole")

// Check reports whether everything that Install and Attach make is there; an [ErrOpen]
// names what is not.
func (p Port) Check(c *rtnl.Conn) error {
	if p.Mode == Off {
		return nil
	}
	if err := p.CheckRules(c); err != nil {
		return err
	}
	if err := checkPortFlags(c, p.LinkIndex); err != nil {
		return fmt.Errorf("bridge port %s: %w", p.Link, err)
	}
	return p.checkEntries(c)
}

// CheckRules compares the port's chain with what it should be; an [ErrOpen] says that it is
// another.
func (p Port) CheckRules(c *rtnl.Conn) error {
	if p.Mode == Off {
		return nil
	}
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	chain := portChain(p.Link)
	rules, err := conn.GetRules(chain.Table, chain)
	if err != nil && !gone(err) {
		return fmt.Errorf("reading chain %s of table netdev %s: %w", chain.Name, tableName, explain(err))
	}
	if !same(nftables.TableFamilyNetdev, rules, p.rules()) {
		return fmt.Errorf("%w: chain %s of table netdev %s is missing or was changed", ErrOpen, chain.Name, tableName)
	}
	return nil
}

// checkEntries looks the task's MAC and IP addresses up one by one: their number does
// not grow with that of the ports, as that of all entries does.
func (p Port) checkEntries(c *rtnl.Conn) error {
	entry, err := c.Neighbour(rtnl.Neighbour{Index: p.BridgeIndex, MAC: p.MAC, Flags: unix.NTF_SELF})
	if err != nil && !gone(err) {
		return fmt.Errorf("on %s: %w", p.Bridge, err)
	}
	if err := p.checkEntry(entry); err != nil {
		return err
	}
	for _, own := range p.Addrs {
		entry, err := c.Neighbour(rtnl.Neighbour{Index: p.BridgeIndex, Addr: own.Addr()})
		if err != nil && !gone(err) {
			return fmt.Errorf("on %s: %w", p.Bridge, err)
		}
		if err := p.checkNeighbour(own.Addr(), entry); err != nil {
			return err
		}
	}
	return nil
}

// checkEntry judges what the bridge has for the task's MAC address, nothing being the zero
// value.
func (p Port) checkEntry(entry rtnl.Neighbour) error {
	if entry.Index != p.LinkIndex || entry.Flags&ntfSticky == 0 || entry.State&unix.NUD_NOARP == 0 {
		return fmt.Errorf("%w: %s has no sticky entry that puts %s on port %s", ErrOpen, p.Bridge, p.MAC, p.Link)
	}
	return nil
}

func (p Port) checkNeighbour(addr netip.Addr, entry rtnl.Neighbour) error {
	if entry.State&unix.NUD_PERMANENT == 0 || !slices.Equal(entry.MAC, p.MAC) {
		return fmt.Errorf("%w: %s has no permanent neighbour %s at %s", ErrOpen, p.Bridge, addr, p.MAC)
	}
	return nil
}

func checkPortFlags(c *rtnl.Conn, link int) error {
	l, err := c.LinkAt(link)
	if err != nil {
		return fmt.Errorf("reading its settings: %w", err)
	}
	return checkFlags(l)
}

// checkFlags compares the flags of a bridge port with what they should be; one that the
// kernel does not know is left out.
func checkFlags(l rtnl.Link) error {
	if l.Port == nil {
		return fmt.Errorf("%w: it is not a port of a bridge", ErrOpen)
	}
	for _, f := range portFlags {
		if is, known := l.Port.Get(f.attribute); known && is != f.value {
			return fmt.Errorf("%w: %s is %d, not %d", ErrOpen, f.name, is, f.value)
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
