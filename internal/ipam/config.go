package ipam

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/cniedge"
	"taskmeta/internal/ecs"
)

// The environment, as AWS's plugin has it.
const (
	envPath = "IPAM_DB_PATH"
	envWait = "IPAM_DB_CONNECTION_TIMEOUT"
)

// knownKeys are those of `ipam`. The last line has those that AWS's plugins know as well and
// that are nothing to us, or are ecs-bridge's.
var knownKeys = []string{
	"type", "id", "db-path",
	"ipv4-subnet", "ipv4-gateway", "ipv4-address", "ipv4-routes",
	"ipv6-subnet", "ipv6-gateway", "ipv6-address", "ipv6-routes",
	"cniversion", "ignoreunknown", "connectedsubnetmasksizeipv4", "connectedsubnetmasksizeipv6",
}

// A place is the part of the configuration that every verb needs.
type place struct {
	path string
	wait time.Duration
	id   string
	// named are the addresses asked for, as far as they can be read.
	named []netip.Addr
}

// A config is the whole of it, as ADD and STATUS need it.
type config struct {
	place
	labels    map[string]string
	addresses []address
}

// An address is what is configured of the one to give, IPv4 or IPv6.
type address struct {
	pool   ecs.Pool
	addr   netip.Prefix // not valid if any will do
	routes []*types.Route
}

func (c *config) wants() []bindingdb.Want {
	wants := make([]bindingdb.Want, len(c.addresses))
	for i, a := range c.addresses {
		wants[i] = bindingdb.Want{Pool: a.pool, Addr: a.addr}
	}
	return wants
}

// hops are the next hops of the routes in the subnets that are not the gateways.
func (c *config) hops() (hops []netip.Addr) {
	for _, a := range c.addresses {
		for _, r := range a.routes {
			hop, ok := netip.AddrFromSlice(r.GW)
			hop = hop.Unmap()
			if ok && hop != a.pool.Gateway && a.pool.Subnet.Contains(hop) && !slices.Contains(hops, hop) {
				hops = append(hops, hop)
			}
		}
	}
	return hops
}

// keys is an `ipam` object. Letter case in keys is of no account, as it is for AWS's.
type keys map[string]json.RawMessage

// readKeys takes the `ipam` object from a network configuration; nil if there is none.
func readKeys(conf map[string]json.RawMessage) (keys, error) {
	value, ok := conf["ipam"]
	if !ok {
		return nil, nil
	}
	var written keys
	if err := json.Unmarshal(value, &written); err != nil {
		return nil, cniedge.BadKey("ipam", value, `an object such as {"type": "ecs-ipam"}`)
	}
	if written == nil {
		return nil, nil
	}
	k := make(keys, len(written))
	for key, value := range written {
		lower := strings.ToLower(key)
		if _, twice := k[lower]; twice {
			return nil, cniedge.BadKey("ipam."+key, value, "the key once, not in two ways to write it")
		}
		k[lower] = value
	}
	return k, nil
}

// text returns the string at a key, "" if it is missing, null or empty.
func (k keys) text(key, expected string) (s string, err error) {
	value, ok := k[key]
	if !ok {
		return "", nil
	}
	if err := json.Unmarshal(value, &s); err != nil {
		return "", cniedge.BadKey("ipam."+key, value, expected)
	}
	return s, nil
}

func parsePlace(conf map[string]json.RawMessage) (place, error) {
	k, err := readKeys(conf)
	if err != nil {
		return place{}, err
	}
	return k.place()
}

func (k keys) place() (p place, err error) {
	if p.id, err = k.text("id", "the Docker ID of the pause container"); err != nil {
		return p, err
	}
	if p.path, err = k.text("db-path", "the path of the bindings file"); err != nil {
		return p, err
	}
	for _, f := range []*family{ipv4, ipv6} {
		text, _ := k.text(f.prefix+"address", "")
		if addr, err := netip.ParsePrefix(text); err == nil {
			p.named = append(p.named, addr.Addr())
		}
	}
	if p.path == "" {
		p.path = strings.TrimSpace(os.Getenv(envPath))
	}
	if p.path == "" {
		p.path = bindingdb.DefaultPath
	}
	p.wait = bindingdb.DefaultWait
	if text := strings.TrimSpace(os.Getenv(envWait)); text != "" {
		if p.wait, err = time.ParseDuration(text); err != nil || p.wait < 0 {
			return p, cniedge.BadEnv(envWait, text, "a duration such as 5s or 500ms, 0 to wait as long as a verb may take")
		}
		if p.wait == 0 {
			p.wait = cniedge.VerbTimeout
		}
	}
	return p, nil
}

// parseConfig reads and checks all that ecs-ipam takes from a network configuration.
func parseConfig(conf map[string]json.RawMessage) (*config, error) {
	k, err := readKeys(conf)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, cniedge.BadKey("ipam", nil, `an object such as {"type": "ecs-ipam"}`)
	}
	var c config
	if c.place, err = k.place(); err != nil {
		return nil, err
	}
	if c.labels, err = readLabels(conf["args"]); err != nil {
		return nil, err
	}
	for key, value := range k {
		if !slices.Contains(knownKeys, key) {
			return nil, cniedge.BadKey("ipam."+key, value, fmt.Sprintf("a known key, the nearest of which is %q", nearest(key, knownKeys)))
		}
	}
	for _, f := range k.families() {
		a, err := k.address(f)
		if err != nil {
			return nil, err
		}
		c.addresses = append(c.addresses, a)
	}
	return &c, nil
}

// A family is what its values look like, and what stands for those that are missing.
type family struct {
	name, prefix  string
	bits          int
	subnet, route string // examples
	defaultSubnet string
	defaultRoutes json.RawMessage
}

var (
	ipv4 = &family{
		name: "IPv4", prefix: "ipv4-", bits: 32,
		subnet: "169.254.172.0/22", route: "169.254.170.2/32",
		defaultSubnet: ecs.DefaultSubnet.String(),
		defaultRoutes: json.RawMessage(`[{"dst": "` + ecs.EndpointAddr.String() + `/32"}]`),
	}
	ipv6 = &family{
		name: "IPv6", prefix: "ipv6-", bits: 128,
		subnet: "fd00:ec2::172:0/112", route: "fd00:ec2::170:2/128",
		defaultRoutes: json.RawMessage(`[]`),
	}
)

// owns reports whether ip is of the family.
func (f *family) owns(ip net.IP) bool {
	addr, ok := netip.AddrFromSlice(ip)
	return ok && addr.Unmap().BitLen() == f.bits
}

// families are those that have a key, IPv4 if none has.
func (k keys) families() []*family {
	var found []*family
	for _, f := range []*family{ipv4, ipv6} {
		for key := range k {
			if strings.HasPrefix(key, f.prefix) {
				found = append(found, f)
				break
			}
		}
	}
	if found == nil {
		return []*family{ipv4}
	}
	return found
}

// address reads the four keys of a family.
func (k keys) address(f *family) (a address, err error) {
	if err := k.pool(f, &a); err != nil {
		return a, err
	}
	key := f.prefix + "address"
	expected := fmt.Sprintf("an address of %s with its length, such as %q, and not the gateway's",
		a.pool.Subnet, netip.PrefixFrom(a.pool.Gateway.Next(), a.pool.Subnet.Bits()))
	text, err := k.text(key, expected)
	if err != nil {
		return a, err
	}
	if _, given := k[key]; given {
		if a.addr, err = netip.ParsePrefix(text); err != nil || !a.pool.Grantable(a.addr.Addr()) {
			return a, cniedge.BadKey("ipam."+key, k[key], expected)
		}
	}
	a.routes, err = k.routes(f, a.pool.Gateway)
	return a, err
}

// pool reads subnet and gateway.
func (k keys) pool(f *family, a *address) error {
	key := f.prefix + "subnet"
	expected := fmt.Sprintf("an %s subnet such as %q", f.name, f.subnet)
	text, err := k.text(key, expected)
	if err != nil {
		return err
	}
	if _, given := k[key]; !given {
		text = f.defaultSubnet
	}
	subnet, err := netip.ParsePrefix(text)
	if err != nil || subnet.Addr().BitLen() != f.bits || subnet.Addr().Is4In6() {
		return cniedge.BadKey("ipam."+key, k[key], expected)
	}
	if a.pool, err = ecs.NewPool(subnet, netip.Addr{}); err != nil {
		return cniedge.BadKey("ipam."+key, k[key], fmt.Sprintf("%s: %s", expected, err))
	}

	key = f.prefix + "gateway"
	expected = fmt.Sprintf("an address of %s, such as %q", subnet, a.pool.Gateway)
	text, err = k.text(key, expected)
	if err != nil || text == "" {
		return err
	}
	gateway, err := netip.ParseAddr(text)
	if err == nil {
		a.pool, err = ecs.NewPool(subnet, gateway)
	}
	if err != nil {
		return cniedge.BadKey("ipam."+key, k[key], expected)
	}
	return nil
}

// routes reads the list of routes. One without a gateway of its own goes via the subnet's.
func (k keys) routes(f *family, gateway netip.Addr) ([]*types.Route, error) {
	key := f.prefix + "routes"
	value, ok := k[key]
	if !ok {
		value = f.defaultRoutes
	}
	bad := cniedge.BadKey("ipam."+key, value, fmt.Sprintf(`a list of %s routes such as [{"dst": %q, "gw": %q}]`, f.name, f.route, gateway))
	var routes []*types.Route
	if err := json.Unmarshal(value, &routes); err != nil {
		return nil, bad
	}
	for _, r := range routes {
		if r == nil || !f.owns(r.Dst.IP) || r.GW != nil && !f.owns(r.GW) {
			return nil, bad
		}
		if r.GW == nil {
			r.GW = gateway.AsSlice()
		}
	}
	return routes, nil
}

// readLabels reads `cni.labels` of `args`, which CNI's conventions have as a list of pairs.
func readLabels(args json.RawMessage) (map[string]string, error) {
	if args == nil {
		return nil, nil
	}
	var conf struct {
		CNI struct {
			Labels json.RawMessage `json:"labels"`
		} `json:"cni"`
	}
	if err := json.Unmarshal(args, &conf); err != nil {
		return nil, cniedge.BadKey("args", args, `an object such as {"cni": {"labels": []}}`)
	}
	if conf.CNI.Labels == nil {
		return nil, nil
	}
	var pairs []struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	if err := json.Unmarshal(conf.CNI.Labels, &pairs); err != nil {
		return nil, cniedge.BadKey("args.cni.labels", conf.CNI.Labels, `a list such as [{"key": "`+ecs.LabelTaskARN+`", "value": "arn:aws:ecs:…"}]`)
	}
	labels := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		labels[pair.Key] = pair.Value
	}
	return labels, nil
}

// nearest returns the one of words that word can be made with the fewest insertions,
// deletions and replacements of bytes.
func nearest(word string, words []string) string {
	return slices.MinFunc(words, func(a, b string) int { return distance(word, a) - distance(word, b) })
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // distances of a's beginning to each beginning of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
