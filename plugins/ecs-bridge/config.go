package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/guard"
)

const (
	defaultBridge = "ecs-bridge"
	defaultMTU    = 1500

	// What a link can have: the least is what IPv4 asks for, the most what the kernel's
	// bridges and veths take.
	minMTU, maxMTU = 68, 65535
)

// A config is what ADD, CHECK and STATUS take from a network configuration.
type config struct {
	bridge    string
	mtu       int // bytes
	guard     guard.Mode
	blockIMDS bool
	ipam      string // the IPAM plugin's name
	// onLink4 and onLink6 are the lengths of the subnets around its own addresses that a
	// task takes to be on the link; 0 is none.
	onLink4, onLink6 int
}

// written is the configuration as it stands. Keys that are not here are not ours to judge.
type written struct {
	Bridge    json.RawMessage `json:"bridge"`
	MTU       json.RawMessage `json:"mtu"`
	Guard     json.RawMessage `json:"guard"`
	BlockIMDS json.RawMessage `json:"blockInstanceMetadata"`
	IPAM      json.RawMessage `json:"ipam"`
}

type writtenIPAM struct {
	Type    json.RawMessage `json:"type"`
	OnLink4 json.RawMessage `json:"connectedSubnetMaskSizeIPv4"`
	OnLink6 json.RawMessage `json:"connectedSubnetMaskSizeIPv6"`
}

// parseConfig reads and checks all of it.
func parseConfig(stdin []byte) (*config, error) {
	w, ipam, err := split(stdin)
	if err != nil {
		return nil, err
	}
	c := &config{bridge: defaultBridge, mtu: defaultMTU, guard: guard.Strict}
	for _, k := range []struct {
		path     string
		value    json.RawMessage
		into     any
		good     func() bool
		expected string
	}{
		{"bridge", w.Bridge, &c.bridge, func() bool { return isLinkName(c.bridge) }, bridgeExpected},
		{"mtu", w.MTU, &c.mtu, func() bool { return c.mtu == 0 || c.mtu >= minMTU && c.mtu <= maxMTU }, fmt.Sprintf("bytes, from %d to %d, or 0 for %d", minMTU, maxMTU, defaultMTU)},
		{"guard", w.Guard, &c.guard, func() bool { _, err := guard.ParseMode(string(c.guard)); return err == nil && c.guard != "" }, `"strict", "source" or "off"`},
		{"blockInstanceMetadata", w.BlockIMDS, &c.blockIMDS, nil, "true or false"},
		{"ipam.type", ipam.Type, &c.ipam, func() bool { return c.ipam != "" }, ipamExpected},
		{"ipam.connectedSubnetMaskSizeIPv4", ipam.OnLink4, &c.onLink4, func() bool { return c.onLink4 >= 0 && c.onLink4 <= 32 }, "the length of a subnet, from 1 to 32, or 0 for none"},
		{"ipam.connectedSubnetMaskSizeIPv6", ipam.OnLink6, &c.onLink6, func() bool { return c.onLink6 >= 0 && c.onLink6 <= 128 }, "the length of a subnet, from 1 to 128, or 0 for none"},
	} {
		if k.value != nil && json.Unmarshal(k.value, k.into) != nil || k.good != nil && !k.good() {
			return nil, cniedge.BadKey(k.path, k.value, k.expected)
		}
	}
	if c.mtu == 0 {
		c.mtu = defaultMTU
	}
	return c, nil
}

// A place is where an attachment was made, which is all that taking it away needs: that
// has to work whatever has become of the other keys.
type place struct {
	bridge string
	ipam   string // "" for none
}

func parsePlace(stdin []byte) (place, error) {
	w, ipam, err := split(stdin)
	if err != nil {
		return place{}, err
	}
	p := place{bridge: defaultBridge}
	if w.Bridge != nil && json.Unmarshal(w.Bridge, &p.bridge) != nil {
		return place{}, cniedge.BadKey("bridge", w.Bridge, bridgeExpected)
	}
	if ipam.Type != nil && json.Unmarshal(ipam.Type, &p.ipam) != nil {
		return place{}, cniedge.BadKey("ipam.type", ipam.Type, ipamExpected)
	}
	return p, nil
}

const (
	bridgeExpected = `the name of an interface, at most 15 bytes, such as "ecs-bridge"`
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
