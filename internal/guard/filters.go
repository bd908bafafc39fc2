package guard

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"taskmeta/internal/rtnl"
)

// Filters names the chains of others that packets to and from this host's own sockets pass:
// what may drop a question or its answer. A chain that has no rule and lets all pass is not
// among them. The rules of iptables-legacy are not the kernel's nftables, and not seen.
func Filters(c *rtnl.Conn) ([]string, error) {
	conn, err := dial(c)
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	var names []string
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		chains, err := conn.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, fmt.Errorf("listing the chains of the host's firewall: %w", explain(err))
		}
		for _, chain := range chains {
			if chain.Hooknum == nil || chain.Type != nftables.ChainTypeFilter || *chain.Hooknum == *nftables.ChainHookForward || strings.HasPrefix(chain.Table.Name, tableName) {
				continue
			}
			drops := chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop
			rules, err := conn.GetRules(chain.Table, chain)
			if err != nil {
				return nil, fmt.Errorf("reading a chain of the host's firewall: %w", explain(err))
			}
			if !drops && len(rules) == 0 {
				continue
			}
			name := fmt.Sprintf("table %s %s, chain %s", familyName[family], chain.Table.Name, chain.Name)
			if drops {
				name += " (policy drop)"
			}
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// familyName is what nft calls a family.
var familyName = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyINet: "inet", nftables.TableFamilyNetdev: "netdev",
}
