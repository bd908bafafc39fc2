package guard

import (
	"context"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

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
