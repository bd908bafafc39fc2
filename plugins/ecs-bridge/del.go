package main

import (
	"context"
	"errors"
	"log/slog"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
)

// del takes an attachment away, or what is left of one: the task's namespace may be gone,
// the task may have removed its interface, and an earlier ADD or DEL may have been killed.
// The address comes free last.
func del(ctx context.Context, r *cniedge.Request) error {
	place, err := parsePlace(r.Config)
	if err != nil {
		return err
	}
	before, err := r.Before()
	if err != nil {
		return err
	}
	host, err := openHost()
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
		if err := guard.Remove(host.Conn, place.bridge, link.HostName(r.Attachment), ok && guarded(v)); err != nil {
			return err
		}
		return place.release(ctx, r, "DEL")
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

// release passes a verb that gives addresses back on to the IPAM plugin, if there is one.
func (p place) release(ctx context.Context, r *cniedge.Request, verb string) error {
	if p.ipam == "" {
		return nil
	}
	plugin, err := findIPAM(r, p.ipam)
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
	place, err := parsePlace(r.Config)
	if err != nil {
		return err
	}
	valid, given, err := r.ValidAttachments()
	if err != nil {
		return err
	}
	if given {
		err = removeStale(place.bridge, func(v link.Veth) bool {
			return v.Attachment.Network == r.Network && !valid[v.Attachment] && v.Since < r.Start
		})
	} else {
		slog.Warn("GC without cni.dev/valid-attachments removes nothing", "network", r.Network)
	}
	return errors.Join(err, place.release(ctx, r, "GC"))
}

func removeStale(bridge string, stale func(link.Veth) bool) error {
	host, err := openHost()
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
		errs = append(errs, detach(host, bridge, v))
	}
	return errors.Join(append(errs, guard.Sweep(host.Conn, bridge))...)
}
