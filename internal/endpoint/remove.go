package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/port"
)

// Remove takes away all that the endpoint, the plugins and a resolver have made in a network
// namespace: ports of tasks, bridges, tables, routes and their rules. A bridge of somebody
// else's stays, without what it has of ours. Say is told of each thing that is removed. What
// is gone meanwhile is no error, and one failure does not keep the rest from being removed.
// It is for when no resolver runs, which would make it all again.
func Remove(host *link.Host, bindings []*ecs.Binding, say func(string)) error {
	err := removePorts(host, say)
	bridges, e := host.Bridges()
	err = errors.Join(err, e)
	private, e := host.PrivateBridges()
	err = errors.Join(err, e)
	for _, name := range private {
		changed, e := host.RemovePrivate(name)
		if changed && e == nil {
			say("the rules of routing of bridge " + name)
		}
		err = errors.Join(err, e)
	}
	for _, b := range bridges {
		err = errors.Join(err, removeBridge(host, b, bindings, say))
	}
	tables, e := guard.RemoveTables(host.Conn)
	for _, t := range tables {
		say("table " + t)
	}
	return errors.Join(err, e)
}

// removePorts removes the veth pairs of all attachments.
func removePorts(host *link.Host, say func(string)) error {
	veths, err := host.Veths()
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range veths {
		if v.Name != link.HostName(v.Attachment) {
			continue // it says that it is ours, and is not
		}
		bridge := guard.DefaultBridge
		if b, err := host.LinkAt(v.Bridge); v.Bridge != 0 && err == nil {
			bridge = b.Name
		}
		err := port.Detach(host, bridge, v)
		if err == nil {
			say(fmt.Sprintf("veth %s of %s", v.Name, v.Attachment))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeBridge removes a bridge that was made here, and else what it has of ours.
func removeBridge(host *link.Host, b link.Bridge, bindings []*ecs.Binding, say func(string)) error {
	if b.Made() {
		err := host.DelBridge(b)
		if err == nil {
			say("bridge " + b.Name)
		}
		return err
	}
	err := guard.Sweep(host.Conn, b.Name) // neighbours
	given, e := host.GivenAddrs(b)
	err = errors.Join(err, e)
	if slices.Contains(given, link.Endpoint) { // the kernel may not keep who gave the others
		others, e := host.OthersAddrs(b)
		err = errors.Join(err, e)
		for _, a := range others {
			if ours(a, bindings) && !slices.Contains(given, a) {
				given = append(given, a)
			}
		}
	}
	slices.SortFunc(given, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	for _, a := range given {
		e := host.DelAddr(b, a)
		if e == nil {
			say(fmt.Sprintf("address %s of bridge %s, which is somebody else's and stays", a, b.Name))
		}
		err = errors.Join(err, e)
	}
	return err
}
