package main

import (
	"context"
	"errors"
	"log/slog"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/port"
)

// del takes an attachment away, or what is left of one: the task's namespace may be gone,
// the task may have removed its interface, and an earlier ADD or DEL may have been killed.
// The address comes free last.
func del(ctx context.Context, r *cniedge.Request) error {
	place, err := port.ParsePlace(r.Config)
	if err != nil {
		return err
	}
	before, err := r.Before()
	if err != nil {
		return err
	}
	release, err := lock(ctx, r, place.IPAM)
	if err != nil {
		return err
	}
	defer release()
	host, err := openHost(r, place.Netns)
	if err != nil {
		return err
	}
	defer host.Close()
	v, ok, err := host.Veth(r.Attachment)
	if err != nil {
		return err
	}
	if ok && v.Since >= before {
		return nil
	}
	rest := func() error {
		if err := guard.Remove(host.Conn, place.Bridge, link.HostName(r.Attachment), ok && guarded(v)); err != nil {
			return err
		}
		return giveBack(ctx, r, place.IPAM, "DEL")
	}
	if !ok {
		return rest()
	}
	return host.DelVeth(v, rest)
}

// guarded reports whether an attachment's port was given a guard.
func guarded(v link.Veth) bool { return guard.Mode(v.Guard) != guard.Off }

// detach removes a veth pair and its guard.
func detach(host *link.Host, bridge string, v link.Veth) error {
	return host.DelVeth(v, func() error { return guard.Remove(host.Conn, bridge, v.Name, guarded(v)) })
}

// giveBack passes a verb that gives addresses back on to the IPAM plugin, if there is one.
func giveBack(ctx context.Context, r *cniedge.Request, name, verb string) error {
	if name == "" {
		return nil
	}
	plugin, err := findIPAM(r, name)
	if err != nil {
		return err
	}
	_, err = plugin.do(ctx, verb)
	return err
}

// collect removes what the network's attachments have left that are not valid any more.
// What was made since this process began is kept: the runtime that started it cannot have
// known.
func collect(ctx context.Context, r *cniedge.Request) error {
	place, err := port.ParsePlace(r.Config)
	if err != nil {
		return err
	}
	valid, given, err := r.ValidAttachments()
	if err != nil {
		return err
	}
	if given {
		err = removeStale(r, place, func(v link.Veth) bool {
			return v.Attachment.Network == r.Network && !valid[v.Attachment] && v.Since < r.Start
		})
	} else {
		slog.Warn("GC without cni.dev/valid-attachments removes nothing", "network", r.Network)
	}
	return errors.Join(err, giveBack(ctx, r, place.IPAM, "GC"))
}

func removeStale(r *cniedge.Request, place port.Place, stale func(link.Veth) bool) error {
	host, err := openHost(r, place.Netns)
	if err != nil {
		return err
	}
	defer host.Close()
	veths, err := host.Veths()
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range veths {
		if !stale(v) {
			continue
		}
		slog.Info("removing", "container", v.Attachment.Container, "ifname", v.Attachment.IfName, "veth", v.Name)
		errs = append(errs, detach(host, place.Bridge, v))
	}
	return errors.Join(append(errs, guard.Sweep(host.Conn, place.Bridge))...)
}
