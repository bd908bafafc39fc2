package guard

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Restore gives ports their chains again where somebody has removed them, and returns the
// names of those ports. A port without the flags of a guarded one never had a chain. All
// must be up: one that is not is still being made. It may run beside ADD and DEL.
func Restore(ports []Port) (restored []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("listing the chains of table netdev %s: %w", tableName, explain(err))
	}
	has := make(map[string]bool, len(chains))
	for _, c := range chains {
		if link, ours := strings.CutPrefix(c.Name, chainPrefix); ours && c.Table.Name == tableName {
			has[link] = true
		}
	}
	for _, p := range ports {
		if p.Mode == Off || has[p.Link] || checkPortFlags(p.LinkIndex) != nil {
			continue
		}
		// Not emptied first: should an ADD make the chain at the same time, its rules and its
		// last one, which drops, come before these, or take their place.
		err := p.install(false)
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
	return restored, sweepChains() // of ports that were removed meanwhile
}

// Watch reports that somebody has changed the rules of the guard; any number of changes
// that have not been looked at are one. Those of this package are reported like others'.
// The channel is closed when ctx ends, or when the kernel can no longer be listened to.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("subscribing to changes of nftables: %w", explain(err))
	}
	stop := context.AfterFunc(ctx, s.Close)
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		defer func() {
			if stop() {
				s.Close()
			}
		}()
		for {
			messages, _, err := s.Receive()
			lost := errors.Is(err, unix.ENOBUFS) // more has changed than fitted in the socket's buffer
			if err != nil && !lost {
				return
			}
			for _, m := range messages {
				lost = lost || len(m.Data) >= nl.SizeofNfgenmsg && aboutGuard(m.Data[nl.SizeofNfgenmsg:])
			}
			if !lost {
				continue
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

// aboutGuard reads the attributes of a message about a table, a chain or a rule, which all
// begin with the table's name.
func aboutGuard(attrs []byte) bool {
	list, err := nl.ParseRouteAttr(attrs)
	return err == nil && len(list) > 0 && list[0].Attr.Type&nl.NLA_TYPE_MASK == unix.NFTA_TABLE_NAME &&
		strings.TrimRight(string(list[0].Value), "\x00") == tableName
}
