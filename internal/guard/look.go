package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/rtnl"
)

// A Look is what the kernel has of the guard of all ports of a bridge, read at once: to look
// ports up one by one takes a hundred times as long for a thousand of them.
type Look struct {
	entries    map[[6]byte]rtnl.Neighbour    // of the bridge's forwarding table, by MAC address
	neighbours map[netip.Addr]rtnl.Neighbour // of the bridge
	rules      *Rules
}

// Rules remembers which rules were found to be right. The kernel never changes a rule: one
// that is replaced has another handle.
type Rules struct {
	generation uint32
	listed     bool
	handles    map[string][]uint64 // of the port's chain
	right      map[string]verified
}

// verified are rules that were compared.
type verified struct {
	handles []uint64
	of      *Port // that they are right for
}

// NewLook reads the guard of the bridge of that index.
func (r *Rules) NewLook(c *rtnl.Conn, bridge int) (*Look, error) {
	// Neighbours first: Attach enters a MAC address before the neighbours that have it.
	neighbours, err := c.Neighbours(unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	entries, err := c.Neighbours(unix.AF_BRIDGE)
	if err != nil {
		return nil, err
	}
	l := &Look{entries: make(map[[6]byte]rtnl.Neighbour, len(entries)), neighbours: make(map[netip.Addr]rtnl.Neighbour, len(neighbours)), rules: r}
	for _, n := range neighbours {
		if n.Index == bridge {
			l.neighbours[n.Addr] = n
		}
	}
	for _, e := range entries {
		if e.Master == bridge && e.Index != bridge && len(e.MAC) == 6 {
			l.entries[[6]byte(e.MAC)] = e
		}
	}
	return l, r.read(c)
}

// read lists the rules, unless none has changed since.
func (r *Rules) read(c *rtnl.Conn) error {
	nf, err := rtnl.Open(c.NS, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // without netfilter there are no rules
	}
	if err != nil {
		return err
	}
	defer nf.Close()
	generation, err := generation(nf)
	if err != nil || r.listed && generation == r.generation {
		return err
	}
	const doing = "listing the rules of the ports' chains"
	answers, err := nf.Ask(rtnl.NewStep(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, doing,
		&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_NETDEV}, nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(tableName))))
	if err != nil && !gone(err) {
		return explain(err)
	}
	r.handles = make(map[string][]uint64)
	for _, answer := range answers {
		attrs, err := nl.ParseRouteAttr(answer[nl.SizeofNfgenmsg:])
		if err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		var table, chain string
		var handle uint64
		for _, a := range attrs {
			switch a.Attr.Type & nl.NLA_TYPE_MASK {
			case unix.NFTA_RULE_TABLE:
				table = unix.ByteSliceToString(a.Value)
			case unix.NFTA_RULE_CHAIN:
				chain = unix.ByteSliceToString(a.Value)
			case unix.NFTA_RULE_HANDLE:
				handle = binary.BigEndian.Uint64(a.Value)
			}
		}
		if link, ours := strings.CutPrefix(chain, chainPrefix); ours && table == tableName {
			r.handles[link] = append(r.handles[link], handle)
		}
	}
	r.generation, r.listed = generation, true
	return nil
}

// generation is a number that changes with every change of the namespace's nftables. A
// kernel without nftables has none to change.
func generation(nf *rtnl.Conn) (uint32, error) {
	answer, err := nf.One(rtnl.NewStep(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, "asking for the generation of nftables", &nl.Nfgenmsg{}))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	if err != nil {
		return 0, explain(err)
	}
	attrs, err := nl.ParseRouteAttr(answer[nl.SizeofNfgenmsg:])
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == unix.NFTA_GEN_ID {
			return binary.BigEndian.Uint32(a.Value), nil
		}
	}
	return 0, err
}

// CheckRules reports whether the port's chain is what it should be; an [ErrOpen] says that
// it is not. What was right for a port is remembered by its pointer.
func (l *Look) CheckRules(c *rtnl.Conn, p *Port) error {
	if p.Mode == Off {
		return nil
	}
	r := l.rules
	handles := r.handles[p.Link]
	if was, ok := r.right[p.Link]; ok && was.of == p && slices.Equal(was.handles, handles) {
		return nil
	}
	delete(r.right, p.Link)
	if len(handles) == 0 {
		return fmt.Errorf("%w: chain %s of table netdev %s is missing", ErrOpen, chainPrefix+p.Link, tableName)
	}
	if err := p.CheckRules(c); err != nil {
		return err
	}
	if r.right == nil {
		r.right = make(map[string]verified)
	}
	r.right[p.Link] = verified{slices.Clone(handles), p}
	return nil
}

// Keep forgets the ports for which there is no reason to remember them.
func (r *Rules) Keep(there func(link string) bool) {
	for link := range r.right {
		if !there(link) {
			delete(r.right, link)
		}
	}
}

// CheckEntries reports whether the settings of the bridge port, which its link has, its
// forwarding entry and its neighbours are what they should be; an [ErrOpen] says that they
// are not.
func (l *Look) CheckEntries(link rtnl.Link, p *Port) error {
	if p.Mode == Off {
		return nil
	}
	if err := checkFlags(link); err != nil {
		return fmt.Errorf("bridge port %s: %w", p.Link, err)
	}
	if err := p.checkEntry(l.entries[[6]byte(p.MAC)]); err != nil {
		return err
	}
	for _, own := range p.Addrs {
		if err := p.checkNeighbour(own.Addr(), l.neighbours[own.Addr()]); err != nil {
			return err
		}
	}
	return nil
}
