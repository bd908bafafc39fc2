package port

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/guard"
)

const (
	defaultMTU = 1500

	// What a link can have: the least is what IPv4 asks for, the most what the kernel's
	// bridges and veths take.
	minMTU, maxMTU = 68, 65535
)

// A Config is what ADD, CHECK and STATUS take from a network configuration.
type Config struct {
	Bridge    string
	MTU       int // bytes
	Guard     guard.Mode
	BlockIMDS bool
	IPAM      string // the IPAM plugin's name
	// Netns is where the bridge stands: [OnHost], the path of a network namespace's mount, or
	// "" for what [Open] finds.
	Netns string
	// OnLink4 and OnLink6 are the lengths of the subnets around its own addresses that a
	// task takes to be on the link; 0 is none.
	OnLink4, OnLink6 int
}

// written is the configuration as it stands. Keys that are not here are not ours to judge.
type written struct {
	Bridge    json.RawMessage `json:"bridge"`
	MTU       json.RawMessage `json:"mtu"`
	Guard     json.RawMessage `json:"guard"`
	BlockIMDS json.RawMessage `json:"blockInstanceMetadata"`
	Netns     json.RawMessage `json:"netns"`
	IPAM      json.RawMessage `json:"ipam"`
}

type writtenIPAM struct {
	Type    json.RawMessage `json:"type"`
	OnLink4 json.RawMessage `json:"connectedSubnetMaskSizeIPv4"`
	OnLink6 json.RawMessage `json:"connectedSubnetMaskSizeIPv6"`
}

// ParseConfig reads and checks all of it.
func ParseConfig(stdin []byte) (*Config, error) {
	w, ipam, err := split(stdin)
	if err != nil {
		return nil, err
	}
	c := &Config{Bridge: guard.DefaultBridge, MTU: defaultMTU, Guard: guard.Strict}
	for _, k := range []struct {
		path     string
		value    json.RawMessage
		into     any
		good     func() bool
		expected string
	}{
		{"bridge", w.Bridge, &c.Bridge, func() bool { return isLinkName(c.Bridge) }, bridgeExpected},
		{"mtu", w.MTU, &c.MTU, func() bool { return c.MTU == 0 || c.MTU >= minMTU && c.MTU <= maxMTU }, fmt.Sprintf("bytes, from %d to %d, or 0 for %d", minMTU, maxMTU, defaultMTU)},
		{"guard", w.Guard, &c.Guard, func() bool { _, err := guard.ParseMode(string(c.Guard)); return err == nil && c.Guard != "" }, `"strict", "source" or "off"`},
		{"blockInstanceMetadata", w.BlockIMDS, &c.BlockIMDS, nil, "true or false"},
		{"netns", w.Netns, &c.Netns, func() bool { return isPlace(c.Netns) }, netnsExpected},
		{"ipam.type", ipam.Type, &c.IPAM, func() bool { return c.IPAM != "" }, ipamExpected},
		{"ipam.connectedSubnetMaskSizeIPv4", ipam.OnLink4, &c.OnLink4, func() bool { return c.OnLink4 >= 0 && c.OnLink4 <= 32 }, "the length of a subnet, from 1 to 32, or 0 for none"},
		{"ipam.connectedSubnetMaskSizeIPv6", ipam.OnLink6, &c.OnLink6, func() bool { return c.OnLink6 >= 0 && c.OnLink6 <= 128 }, "the length of a subnet, from 1 to 128, or 0 for none"},
	} {
		if k.value != nil && json.Unmarshal(k.value, k.into) != nil || k.good != nil && !k.good() {
			return nil, cniedge.BadKey(k.path, k.value, k.expected)
		}
	}
	if c.MTU == 0 {
		c.MTU = defaultMTU
	}
	return c, nil
}

// A Place is where an attachment was made, which is all that taking it away needs: that
// has to work whatever has become of the other keys.
type Place struct {
	Bridge string
	Netns  string // as in [Config]
	IPAM   string // "" for none
}

func ParsePlace(stdin []byte) (Place, error) {
	w, ipam, err := split(stdin)
	if err != nil {
		return Place{}, err
	}
	p := Place{Bridge: guard.DefaultBridge}
	if w.Bridge != nil && json.Unmarshal(w.Bridge, &p.Bridge) != nil {
		return Place{}, cniedge.BadKey("bridge", w.Bridge, bridgeExpected)
	}
	if w.Netns != nil && (json.Unmarshal(w.Netns, &p.Netns) != nil || !isPlace(p.Netns)) {
		return Place{}, cniedge.BadKey("netns", w.Netns, netnsExpected)
	}
	if ipam.Type != nil && json.Unmarshal(ipam.Type, &p.IPAM) != nil {
		return Place{}, cniedge.BadKey("ipam.type", ipam.Type, ipamExpected)
	}
	return p, nil
}

const (
	bridgeExpected = `the name of an interface, at most 15 bytes, such as "ecs-bridge"`
	netnsExpected  = `"host", or the absolute path of a network namespace's mount, such as "/run/taskmeta/netns"`
	ipamExpected   = `the name of an IPAM plugin, such as "ecs-ipam"`
)

func split(stdin []byte) (w written, ipam writtenIPAM, err error) {
	if err := json.Unmarshal(stdin, &w); err != nil {
		return w, ipam, types.NewError(types.ErrDecodingFailure, "reading the network configuration: "+err.Error(), "")
	}
	if w.IPAM != nil && json.Unmarshal(w.IPAM, &ipam) != nil {
		return w, ipam, cniedge.BadKey("ipam", w.IPAM, `an object such as {"type": "ecs-ipam"}`)
	}
	return w, ipam, nil
}

// isLinkName reports whether the kernel takes s for the name of an interface.
func isLinkName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsFunc(s, func(c rune) bool {
		return c == '/' || c == ':' || c == 0 || unicode.IsSpace(c)
	})
}

// OnHost says in a configuration that the bridge stands among the host's interfaces.
const OnHost = "host"

func isPlace(s string) bool { return s == "" || s == OnHost || filepath.IsAbs(s) }
