package guard

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// Restore gives ports their chains again where somebody has removed them, and returns the
// names of those ports. A port without the flags of a guarded one never had a chain. All
// must be up: one that is not is still being made. It may run beside ADD and DEL.
func Restore(c *rtnl.Conn, ports []Port) (restored []string, err error) {
	conn, err := dial(c)
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("listing the chains of table netdev %s: %w", tableName, explain(err))
	}
	has := make(map[string]bool, len(chains))
	for _, chain := range chains {
		if link, ours := strings.CutPrefix(chain.Name, chainPrefix); ours && chain.Table.Name == tableName {
			has[link] = true
		}
	}
	for _, p := range ports {
		if p.Mode == Off || has[p.Link] || checkPortFlags(c, p.LinkIndex) != nil {
			continue
		}
		// Not emptied first: should an ADD make the chain at the same time, its rules and its
		// last one, which drops, come before these, or take their place.
		err := p.install(c, false)
		if gone(err) { // with the port: a kernel before 6.16 wants it to be there
			continue
		}
		if err != nil {
			return restored, err
		}
		restored = append(restored, p.Link)
	}
	if len(restored) == 0 {
		return nil, nil
	}
	return restored, sweepChains(c) // of ports that were removed meanwhile
}

// Watch reports that somebody has changed the rules of the guard; any number of changes
// that have not been looked at are one. Those of this package are reported like others'.
// The channel is closed when ctx ends, or when the kernel can no longer be listened to.
func Watch(ctx context.Context, ns *netns.NS) (<-chan struct{}, error) {
	changed, err := rtnl.Watch(ctx, ns, aboutGuard, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	return changed, explain(err)
}

// aboutGuard reads the attributes of a message about a table, a chain or a rule, which all
// begin with the table's name.
func aboutGuard(m syscall.NetlinkMessage) bool {
	attrs, err := nl.ParseRouteAttr(m.Data[min(nl.SizeofNfgenmsg, len(m.Data)):])
	if err != nil || len(attrs) == 0 || attrs[0].Attr.Type&nl.NLA_TYPE_MASK != unix.NFTA_TABLE_NAME {
		return false
	}
	suffix, ours := strings.CutPrefix(unix.ByteSliceToString(attrs[0].Value), tableName)
	return ours && (suffix == "" || suffix[0] == '_') // another bridge's table is cheap to look at for nothing
}
