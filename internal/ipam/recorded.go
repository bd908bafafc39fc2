package ipam

import (
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/ecs"
)

// recordedKeys are those of a network configuration that say what an interface is made
// like: ecs-bridge's, and ours.
var recordedKeys = []string{"bridge", "mtu", "guard", "blockInstanceMetadata", "netns", "ipam"}

// Record is the part of a network configuration that goes into the binding.
func Record(keys map[string]json.RawMessage) (json.RawMessage, error) {
	kept := make(map[string]json.RawMessage, len(recordedKeys))
	for _, key := range recordedKeys {
		if value, ok := keys[key]; ok {
			kept[key] = value
		}
	}
	conf, err := json.Marshal(kept)
	if err != nil {
		return nil, fmt.Errorf("recording the network configuration: %w", err)
	}
	return conf, nil
}

// Recorded returns the network configuration by which a binding was made. Of one that
// recorded none, as the first versions did, it is what the defaults were, for the binding's
// subnets.
func Recorded(b *ecs.Binding) (json.RawMessage, error) {
	if b.Conf != nil {
		return b.Conf, nil
	}
	keys := map[string]string{"type": Name}
	for _, p := range b.Addrs {
		family := ipv4
		if p.Addr().Is6() {
			family = ipv6
		}
		keys[family.prefix+"subnet"] = p.Masked().String()
	}
	return json.Marshal(map[string]any{"ipam": keys})
}

// Granted is the answer that ADD gave for a binding, by its configuration ([Recorded]).
func Granted(b *ecs.Binding, recorded json.RawMessage) (*current.Result, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(recorded, &keys); err != nil {
		return nil, fmt.Errorf("the configuration of %s: %w", b.Attachment, err)
	}
	conf, err := parseConfig(keys)
	if err != nil {
		return nil, fmt.Errorf("the configuration of %s: %w", b.Attachment, err)
	}
	if len(conf.addresses) != len(b.Addrs) {
		return nil, fmt.Errorf("the configuration of %s is for %d addresses: it has %v", b.Attachment, len(conf.addresses), b.Addrs)
	}
	return result(conf, b.Addrs), nil
}

// Routes are those that ADD answers with for a network configuration, none if ADD would
// refuse it.
func Routes(keys map[string]json.RawMessage) (all []*types.Route) {
	conf, err := parseConfig(keys)
	if err != nil {
		return nil
	}
	for _, a := range conf.addresses {
		all = append(all, a.routes...)
	}
	return all
}

// Path is where the bindings file of a network configuration is.
func Path(conf []byte) (string, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(conf, &keys); err != nil {
		return "", fmt.Errorf("reading the network configuration: %w", err)
	}
	place, err := parsePlace(keys)
	return place.path, err
}
