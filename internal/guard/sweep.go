package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/ecs"
	"taskmeta/internal/rtnl"
)

// A rule is what a port's chain says of one of its rules: its number, which no other
// rule ever has, and the task's address, which the last rule has none of.
type rule struct {
	handle uint64
	addr   netip.Addr
}

// ask sends a question that names a port's chain by attributes of these types. There is no
// answer where there is no chain, or no nftables. The library's calls for it decode all
// that there is, or drop the kernel's error.
func ask(c *rtnl.Conn, link string, message, flags, table, chain int) ([][]byte, error) {
	doing := "reading the chain of port " + link
	nf, err := rtnl.Open(c.NS, unix.NETLINK_NETFILTER)
	var answers [][]byte
	if err == nil {
		defer nf.Close()
		answers, err = nf.Ask(rtnl.NewStep(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags, doing, &nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_NETDEV},
			nl.NewRtAttr(table, nl.ZeroTerminated(tableName)), nl.NewRtAttr(chain, nl.ZeroTerminated(chainPrefix+link))))
	}
	switch {
	// Without netfilter there is no such socket; without nftables, no such request.
	case gone(err), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL):
		return nil, nil
	case err != nil:
		return nil, explain(err)
	}
	return answers, nil
}

// exists reports whether a port has a chain.
func exists(c *rtnl.Conn, link string) (bool, error) {
	answers, err := ask(c, link, unix.NFT_MSG_GETCHAIN, 0, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME)
	return len(answers) > 0, err
}

// installed lists the rules of a port's chain.
func installed(c *rtnl.Conn, link string) ([]rule, error) {
	answers, err := ask(c, link, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN)
	if err != nil {
		return nil, err
	}
	var rules []rule
	for _, answer := range answers {
		attrs, err := nl.ParseRouteAttr(answer[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, fmt.Errorf("reading the chain of port %s: %w", link, err)
		}
		var r rule
		for _, a := range attrs {
			switch a.Attr.Type & nl.NLA_TYPE_MASK {
			case unix.NFTA_RULE_HANDLE:
				r.handle = binary.BigEndian.Uint64(a.Value)
			case unix.NFTA_RULE_USERDATA:
				comment, _ := userdata.GetString(a.Value, userdata.TypeComment)
				r.addr, _ = netip.ParseAddr(comment) // someone else's rule may say anything
			}
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// Addrs returns the addresses that the port named link may send from, none where it has
// no chain.
func Addrs(c *rtnl.Conn, link string) ([]netip.Addr, error) {
	rules, err := installed(c, link)
	return named(rules), err
}

// named are the addresses that rules name.
func named(rules []rule) []netip.Addr {
	var addrs []netip.Addr
	for _, r := range rules {
		if r.addr.IsValid() && !slices.Contains(addrs, r.addr) {
			addrs = append(addrs, r.addr)
		}
	}
	return addrs
}

// Sweep removes what killed plugins left behind: chains of ports that no longer exist,
// and neighbours of the bridge that are tasks by their MAC address, which none of its ports
// has. It may run beside ADD and DEL.
func Sweep(c *rtnl.Conn, bridge string) error {
	return errors.Join(sweepChains(c), sweepNeighbours(c, bridge))
}

func sweepChains(c *rtnl.Conn) error {
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return fmt.Errorf("listing the chains of table netdev %s: %w", tableName, explain(err))
	}
	var errs []error
	for _, chain := range chains {
		link, ours := strings.CutPrefix(chain.Name, chainPrefix)
		if !ours || chain.Table.Name != tableName {
			continue
		}
		rules, err := installed(c, link)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// The rules were read before the link was looked for, so they are those of a link
		// that is gone, even if it returns now.
		if _, err := c.Link(link); !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
			continue
		}
		// A chain that was made anew meanwhile has rules of other handles, which fails the
		// whole batch and leaves it alone.
		for _, r := range rules {
			errs = append(errs, conn.DelRule(&nftables.Rule{Table: chain.Table, Chain: chain, Handle: r.handle}))
		}
		conn.DelChain(chain)
		if err := conn.Flush(); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("deleting chain %s: %w", chain.Name, err))
		}
	}
	return errors.Join(errs...)
}

func sweepNeighbours(c *rtnl.Conn, bridge string) error {
	l, err := c.Link(bridge)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	// Neighbours first: Attach enters a MAC address before the neighbours that have it.
	known, err := c.Neighbours(unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	entries, err := c.Neighbours(unix.AF_BRIDGE)
	if err != nil {
		return err
	}
	onPort := map[string]bool{}
	for _, e := range entries {
		if e.Master == l.Index && e.Index != l.Index {
			onPort[e.MAC.String()] = true
		}
	}
	var stale []netip.Addr
	for _, n := range known {
		if n.Index == l.Index && n.State&unix.NUD_PERMANENT != 0 && ecs.IsMAC(n.MAC) && !onPort[n.MAC.String()] {
			stale = append(stale, n.Addr)
		}
	}
	return forget(c, bridge, stale)
}
