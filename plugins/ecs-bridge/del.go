package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/ecs"
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
	release, err := lock(ctx, r, place.IPAM, r.Attachment)
	if err != nil {
		return err
	}
	defer release()
	all, err := openHosts(r, place.Netns)
	if err != nil {
		return err
	}
	defer all.close()
	rest := func() error { return giveBack(ctx, r, place.IPAM, "DEL") }
	for _, host := range slices.Backward(all) {
		v, ok, err := host.Veth(r.Attachment)
		if err != nil {
			return err
		}
		if ok && v.Since >= before {
			return nil
		}
		then := rest
		rest = func() error {
			if err := guard.Remove(host.Conn, place.Bridge, link.HostName(r.Attachment), ok && guarded(v)); err != nil {
				return err
			}
			return then()
		}
		if ok {
			meanwhile := rest
			rest = func() error { return host.DelVeth(v, meanwhile) }
		}
	}
	return rest()
}

// guarded reports whether an attachment's port was given a guard.
func guarded(v link.Veth) bool { return guard.Mode(v.Guard) != guard.Off }

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
	if !given {
		slog.Warn("GC without cni.dev/valid-attachments removes nothing", "network", r.Network)
		return giveBack(ctx, r, place.IPAM, "GC")
	}
	release, err := removeStale(ctx, r, place, func(v link.Veth) bool {
		return v.Attachment.Network == r.Network && !valid[v.Attachment] && v.Since < r.Start
	})
	defer release()
	return errors.Join(err, giveBack(ctx, r, place.IPAM, "GC"))
}

// removeStale removes ports, which stay locked until they are released: their bindings come
// free later.
func removeStale(ctx context.Context, r *cniedge.Request, place port.Place, stale func(link.Veth) bool) (release func(), err error) {
	release = func() {}
	all, err := openHosts(r, place.Netns)
	if err != nil {
		return release, err
	}
	defer all.close()
	var of []ecs.Attachment
	ports := make([][]link.Veth, len(all))
	for i, host := range all {
		veths, err := host.Veths()
		if err != nil {
			return release, err
		}
		ports[i] = slices.DeleteFunc(veths, func(v link.Veth) bool { return !stale(v) })
		for _, v := range ports[i] {
			of = append(of, v.Attachment)
		}
	}
	if len(of) > 0 {
		if release, err = lock(ctx, r, place.IPAM, of...); err != nil {
			return func() {}, err
		}
	}
	var errs []error
	for i, host := range all {
		for _, v := range ports[i] {
			slog.Info("removing", "container", v.Attachment.Container, "ifname", v.Attachment.IfName, "veth", v.Name)
			errs = append(errs, port.Detach(host, place.Bridge, v))
		}
		errs = append(errs, guard.Sweep(host.Conn, place.Bridge))
	}
	return release, errors.Join(errs...)
}
