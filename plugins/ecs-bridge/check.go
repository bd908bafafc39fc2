package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/ipam"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
	"taskmeta/internal/port"
)

// check compares what is there with what ADD returned.
func check(ctx context.Context, r *cniedge.Request) error {
	conf, err := port.ParseConfig(r.Config)
	if err != nil {
		return err
	}
	prev, err := r.CheckedResult()
	if err != nil {
		return err
	}
	plugin, err := findIPAM(r, conf.IPAM)
	if err != nil {
		return err
	}
	if err := checkLinks(r, conf, prev); err != nil {
		return types.NewError(cniedge.CodeMismatch, err.Error(), "")
	}
	_, err = plugin.do(ctx, "CHECK")
	return err
}

// checkLinks names the first thing that is not as ADD left it.
func checkLinks(r *cniedge.Request, conf *port.Config, prev *current.Result) error {
	own := ownInterface(r, prev)
	if own < 0 {
		return fmt.Errorf("prevResult has no interface %s in %s", r.IfName, r.Netns)
	}
	g, err := given(r, conf, prev, own)
	if err != nil {
		return err
	}
	host, _, task, err := open(r, conf.Netns)
	if err != nil {
		return err
	}
	defer host.Close()
	defer task.Close()
	v, ok, err := host.Veth(r.Attachment)
	if err == nil && !ok {
		err = checkElsewhere(r, conf, host)
	}
	if err != nil {
		return err
	}
	bridge, err := host.Bridge(conf.Bridge)
	if err != nil {
		return err
	}
	if err := host.CheckAddrs(bridge, append(g.Gateways, link.Endpoint)...); err != nil {
		return err
	}
	switch {
	case !ok:
		return fmt.Errorf("veth %s is missing", link.HostName(r.Attachment))
	case v.Bridge != bridge.Index:
		return fmt.Errorf("veth %s is not a port of %s", v.Name, bridge.Name)
	case !v.Up:
		return fmt.Errorf("veth %s is down", v.Name)
	}
	want := conf.Interface(r.IfName, g)
	if want.MAC, err = net.ParseMAC(prev.Interfaces[own].Mac); err != nil {
		return fmt.Errorf("prevResult: %w", err)
	}
	if err := task.Check(want); err != nil {
		return err
	}
	return conf.Guarded(bridge, v, g, want).Check(host.Conn)
}

// checkElsewhere reports a port that stands in another network namespace than the bridge.
func checkElsewhere(r *cniedge.Request, conf *port.Config, host *link.Host) error {
	others, err := openHosts(r, conf.Netns)
	if err != nil {
		return err
	}
	defer others.close()
	for _, other := range others {
		v, ok, err := other.Veth(r.Attachment)
		if err != nil {
			return err
		}
		if ok && other.NS.ID() != host.NS.ID() {
			return fmt.Errorf("veth %s stands in %s: expected in %s", v.Name, port.Named(other.NS), port.Named(host.NS))
		}
	}
	return nil
}

// ownInterface is the index of the task's end of the pair in a result, -1 if it has none.
// Other interfaces may have its name: the host's, and those of other namespaces.
func ownInterface(r *cniedge.Request, prev *current.Result) int {
	task, taskErr := netns.Identify(r.Netns)
	return slices.IndexFunc(prev.Interfaces, func(i *current.Interface) bool {
		if i == nil || i.Name != r.IfName || i.Sandbox == "" {
			return false
		}
		if i.Sandbox == r.Netns {
			return true
		}
		id, err := netns.Identify(i.Sandbox) // another path of the same
		return err == nil && taskErr == nil && id == task
	})
}

// given is the part of a result that belongs to the interface of that index: its addresses,
// and those of the routes that are ours. The rest is of other plugins of the chain, which
// check it themselves.
func given(r *cniedge.Request, conf *port.Config, prev *current.Result, own int) (port.Grant, error) {
	part := &current.Result{}
	others := make(map[bool]bool) // whether other plugins gave addresses of IPv4, of IPv6
	for _, ip := range prev.IPs {
		switch {
		case ip == nil:
		case ip.Interface != nil && *ip.Interface == own:
			part.IPs = append(part.IPs, ip)
		default:
			others[ip.Address.IP.To4() != nil] = true
		}
	}
	configured := conf.IPAM == ipam.Name
	routes := ipam.Routes(r.Keys)
	for _, route := range prev.Routes {
		switch {
		case route == nil:
		case slices.ContainsFunc(part.IPs, func(ip *current.IPConfig) bool { return ip.Address.Contains(route.GW) }),
			configured && slices.ContainsFunc(routes, func(c *types.Route) bool { return sameRoute(c, route) }),
			!configured && !others[route.Dst.IP.To4() != nil]:
			part.Routes = append(part.Routes, route)
		}
	}
	g, err := port.NewGrant(part)
	if err != nil {
		return port.Grant{}, fmt.Errorf("prevResult: %w", err)
	}
	return g, nil
}

// sameRoute reports whether two routes have the same destination and next hop.
func sameRoute(a, b *types.Route) bool {
	return a.Dst.IP.Equal(b.Dst.IP) && slices.Equal(a.Dst.Mask, b.Dst.Mask) && a.GW.Equal(b.GW)
}

// status says whether an ADD could be served, as far as can be told without one, and
// whether the attachments that there are can still reach the bridge.
func status(ctx context.Context, r *cniedge.Request) error {
	conf, err := port.ParseConfig(r.Config)
	if err != nil {
		return err
	}
	plugin, err := findIPAM(r, conf.IPAM)
	if err != nil {
		return err
	}
	if err := privileged(); err != nil {
		return err
	}
	if _, _, err := port.Open(r.Config, conf.Netns); err != nil {
		return err // such as a key that names what is missing
	}
	all, err := openHosts(r, conf.Netns)
	if err != nil {
		return err
	}
	defer all.close()
	if err := checkBridge(all[0], conf.Bridge, r.Network); err != nil {
		return err
	}
	if err := checkPlace(all, r.Network); err != nil {
		return err
	}
	_, err = plugin.do(ctx, "STATUS")
	return err
}

// checkBridge reports what an ADD would fail for. A bridge that is missing or down is
// mended by the next ADD, but cuts off the attachments that there are: code 51.
func checkBridge(host *link.Host, name, network string) error {
	bridge, err := host.Bridge(name)
	switch {
	case err == nil && bridge.Up:
		return nil
	case err == nil:
		err = fmt.Errorf("bridge %s is down", name)
	}
	cut, listErr := count(host, network)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	switch {
	case cut > 0:
		return types.NewError(types.ErrLimitedConnectivity, fmt.Sprintf("%d attachments of network %s are cut off: %s", cut, network, err), "")
	case bridge.Index != 0, errors.Is(err, unix.ENODEV):
		return nil
	}
	return err
}

// checkPlace reports attachments that stand in another network namespace than the bridge,
// where a resolver moves them while it runs: code 51.
func checkPlace(all hosts, network string) error {
	for _, other := range all[1:] {
		n, err := count(other, network)
		if err != nil {
			return err
		}
		if n > 0 {
			return types.NewError(types.ErrLimitedConnectivity, fmt.Sprintf("%d attachments of network %s stand in %s: expected in %s, where a resolver moves them while it runs",
				n, network, port.Named(other.NS), port.Named(all[0].NS)), "")
		}
	}
	return nil
}

// count is the number of a network's attachments that stand there.
func count(host *link.Host, network string) (n int, err error) {
	veths, err := host.Veths()
	for _, v := range veths {
		if v.Attachment.Network == network {
			n++
		}
	}
	return n, err
}

// privileged reports the capability that an ADD would fail for the lack of.
func privileged() error {
	var have [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	for _, need := range []struct {
		bit       uint
		name, why string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to make interfaces"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "to enter the namespaces of tasks"},
	} {
		if have[need.bit/32].Effective&(1<<(need.bit%32)) == 0 {
			return fmt.Errorf("%s is missing, which is needed %s: run the plugin as root", need.name, need.why)
		}
	}
	return nil
}
