package attach

import (
	"context"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
)

// Plugins looks for the plugins of the network, asks them whether they know its version of
// CNI, and returns their paths.
func (a *Attacher) Plugins(ctx context.Context) ([]string, error) {
	var paths []string
	for _, plugin := range a.network.Plugins {
		for _, name := range []string{plugin.Network.Type, plugin.Network.IPAM.Type} {
			if name == "" {
				continue
			}
			path, err := invoke.FindInPath(name, a.PluginPath)
			if err != nil {
				return nil, fmt.Errorf("%s is in none of %v: install it there, or name its folder with --cni-path", name, a.PluginPath)
			}
			info, err := a.cni.GetVersionInfo(ctx, name)
			if err != nil {
				return nil, fmt.Errorf("asking %s for its version: %w", path, err)
			}
			if known := info.SupportedVersions(); !slices.Contains(known, a.network.CNIVersion) {
				return nil, fmt.Errorf("%s knows CNI %v and not %s: it is another program of that name; put the folder of taskmeta's first in --cni-path", path, known, a.network.CNIVersion)
			}
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// Ready asks the plugins whether a container could be attached now.
func (a *Attacher) Ready(ctx context.Context) error {
	list, err := a.configure(a.network, nil)
	if err != nil {
		return err
	}
	return a.cni.GetStatusNetworkList(ctx, list)
}
