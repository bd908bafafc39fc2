package attach

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
)

// BuiltinNetwork is the name of the network that needs no configuration file.
const BuiltinNetwork = "ecs-docker"

// load finds the configured network, or makes the built-in one.
func (c Config) load() (*libcni.NetworkConfigList, error) {
	if c.Network == "" {
		return builtin(BuiltinNetwork, c.Bridge)
	}
	list, err := libcni.LoadNetworkConf(c.NetDir, c.Network)
	var none libcni.NoConfigsFoundError
	var other libcni.NotFoundError
	switch {
	case errors.As(err, &none) || errors.As(err, &other):
		return nil, fmt.Errorf("network %q: no file in %s configures it: put a .conflist there, or leave the network out to use the built-in one", c.Network, c.NetDir)
	case err != nil:
		return nil, fmt.Errorf("network %q: reading the configuration files in %s: %w", c.Network, c.NetDir, err)
	}
	return list, nil
}

func builtin(name, bridge string) (*libcni.NetworkConfigList, error) {
	plugin := map[string]any{"type": "ecs-bridge", "ipam": map[string]any{"type": "ecs-ipam"}}
	if bridge != "" {
		plugin["bridge"] = bridge
	}
	text, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": name, "plugins": []any{plugin}})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(text)
}

// configure adds to each plugin what is known of the container and where the bindings are.
func (c Config) configure(list *libcni.NetworkConfigList, labels map[string]string) (*libcni.NetworkConfigList, error) {
	full := *list
	full.Plugins = slices.Clone(list.Plugins)
	for i, plugin := range full.Plugins {
		more := make(map[string]any)
		if taken := identity(labels); len(taken) > 0 {
			more["args"] = map[string]any{"cni": map[string]any{"labels": taken}}
		}
		var written struct {
			IPAM map[string]any `json:"ipam"`
		}
		if err := json.Unmarshal(plugin.Bytes, &written); err != nil {
			return nil, fmt.Errorf("network %q: plugin %s: %w", list.Name, plugin.Network.Type, err)
		}
		if written.IPAM["type"] == "ecs-ipam" {
			written.IPAM["db-path"] = c.DB
			more["ipam"] = written.IPAM
		}
		if c.PluginNetns != "" && plugin.Network.Type == "ecs-bridge" {
			more["netns"] = c.PluginNetns
		}
		var err error
		if full.Plugins[i], err = libcni.InjectConf(plugin, more); err != nil {
			return nil, fmt.Errorf("network %q: plugin %s: %w", list.Name, plugin.Network.Type, err)
		}
	}
	return &full, nil
}

// configuration returns the network configuration of an attachment's ADD. libcni keeps it, and
// the flags or the file may have changed since. If somebody else made the attachment its network
// is not known, and the built-in one stands in: it has the same plugins.
func (a *Attacher) configuration(key ecs.Attachment) (*libcni.NetworkConfigList, error) {
	if key.IsProbe() {
		return forProbes(a.network), nil
	}
	if key.Network != a.network.Name {
		return builtin(key.Network, a.Bridge)
	}
	text, _, err := a.cni.GetNetworkListCachedConfig(a.network, runtimeConf(key, ""))
	if err == nil && len(text) > 0 {
		if list, err := libcni.NetworkConfFromBytes(text); err == nil && list.Name == a.network.Name {
			return list, nil
		}
	}
	return a.network, nil
}

// bridgesOf are the bridges that a network's attachments are on, and the resolver's.
func bridgesOf(list *libcni.NetworkConfigList, resolver string) []string {
	bridges := []string{cmp.Or(resolver, guard.DefaultBridge)}
	for _, plugin := range list.Plugins {
		var written struct{ Bridge string }
		if plugin.Network.Type == "ecs-bridge" && json.Unmarshal(plugin.Bytes, &written) == nil {
			bridges = append(bridges, cmp.Or(written.Bridge, guard.DefaultBridge))
		}
	}
	return bridges
}

// inject adds keys to the configuration of each plugin.
func inject(list *libcni.NetworkConfigList, keys map[string]any) (*libcni.NetworkConfigList, error) {
	full := *list
	full.Plugins = slices.Clone(list.Plugins)
	for i, plugin := range full.Plugins {
		var err error
		if full.Plugins[i], err = libcni.InjectConf(plugin, keys); err != nil {
			return nil, fmt.Errorf("network %q: plugin %s: %w", list.Name, plugin.Network.Type, err)
		}
	}
	return &full, nil
}

// A label is one in the form of CNI's conventions.
type label struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// identity are the labels that say which task it is, in order of their keys.
func identity(labels map[string]string) []label {
	var taken []label
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if strings.HasPrefix(key, "com.amazonaws.ecs.") || strings.HasPrefix(key, "taskmeta.") {
			taken = append(taken, label{key, labels[key]})
		}
	}
	return taken
}
