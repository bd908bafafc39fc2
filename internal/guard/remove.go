package guard

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"taskmeta/internal/rtnl"
)

// RemoveTables deletes the tables of all bridges and of their ports, and returns their names.
// It is for the end, when no port is left: what a chain guards it guards no more.
func RemoveTables(c *rtnl.Conn) (removed []string, err error) {
	return removeTables(c, nftables.TableFamilyINet, nftables.TableFamilyNetdev)
}

// RemovePorts deletes the table of the ports' chains from a namespace in which no port is
// left.
func RemovePorts(c *rtnl.Conn) error {
	_, err := removeTables(c, nftables.TableFamilyNetdev)
	return err
}

func removeTables(c *rtnl.Conn, families ...nftables.TableFamily) (removed []string, err error) {
	conn, err := dial(c)
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	for _, family := range families {
		name := familyName[family]
		tables, err := conn.ListTablesOfFamily(family)
		switch {
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EAFNOSUPPORT):
			continue // a kernel without nftables has no tables
		case err != nil:
			return removed, fmt.Errorf("listing the tables of family %s: %w", name, explain(err))
		}
		for _, t := range tables {
			if t.Name != tableName && !(family == nftables.TableFamilyINet && strings.HasPrefix(t.Name, tableName+"_")) {
				continue
			}
			conn.DelTable(t)
			if err := conn.Flush(); err != nil && !gone(err) {
				return removed, fmt.Errorf("deleting table %s %s: %w", name, t.Name, explain(err))
			}
			removed = append(removed, name+" "+t.Name)
		}
	}
	return removed, nil
}
