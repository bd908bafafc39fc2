// Package ipam is the CNI plugin ecs-ipam: it gives each attachment of a task an address of
// its own and records whose it is, for the resolver to tell tasks apart by.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/bootclock"
	"taskmeta/internal/cniedge"
	"taskmeta/internal/ecs"
	"taskmeta/internal/netns"
)

const help = `ecs-ipam is a CNI plugin: it gives a task an address and records whose it is.

A container runtime, or another plugin, starts it with the verb in CNI_COMMAND (ADD, DEL,
CHECK, GC, STATUS or VERSION) and the network configuration on standard input. By hand:

  CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/run/netns/c1 CNI_PATH=/opt/cni/bin \
    ecs-ipam <<< '{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam"}}'

Keys of "ipam", all optional but "type":
  ipv4-subnet   subnet to give addresses of           169.254.172.0/22
  ipv4-gateway  its gateway, which is never given     its first address
  ipv4-address  the one address to give, with /bits   any that is free
  ipv4-routes   [{"dst": "CIDR", "gw": "address"}]    169.254.170.2/32; gw: the gateway
  ipv6-subnet, ipv6-gateway, ipv6-address, ipv6-routes: the same, but with no defaults;
                with these alone the task gets no IPv4 address
  id            Docker ID of the pause container      the container ID
  db-path       file of the bindings                  /run/taskmeta/bindings.db

Environment: IPAM_DB_PATH stands for a missing db-path, IPAM_DB_CONNECTION_TIMEOUT is how
long to wait for other plugins at work on the file (5s), TASK_ARN= in CNI_ARGS names the
task. ECS_CNI_LOG_FILE is where to log (standard error), ECS_CNI_LOGLEVEL from which level on
(info).`

// Name is the name of the plugin's program.
const Name = "ecs-ipam"

// Plugin returns the plugin.
func Plugin(version string) cniedge.Plugin {
	return cniedge.Plugin{
		Name: Name, Version: version, Help: help,
		Add: add, Del: del, Check: check, GC: collect, Status: status,
	}
}

func add(ctx context.Context, r *cniedge.Request) (*current.Result, error) {
	conf, err := parseConfig(r.Keys)
	if err != nil {
		return nil, err
	}
	b, err := identify(r, conf)
	if err != nil {
		return nil, err
	}
	s, err := bindingdb.Open(ctx, conf.path, bindingdb.Options{Create: true, Wait: conf.wait})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	b.Created, b.Since = time.Now().UTC(), bootclock.Now()
	if b, err = s.Acquire(b, conf.wants()...); err != nil {
		return nil, err
	}
	return result(conf, b.Addrs), nil
}

// identify is the binding that the request is for, without addresses.
func identify(r *cniedge.Request, conf *config) (ecs.Binding, error) {
	arn, err := r.TaskARN()
	if err != nil {
		return ecs.Binding{}, err
	}
	if label := conf.labels[ecs.LabelTaskARN]; label != "" {
		arn = label
	}
	ns, _ := netns.Identify(r.Netns) // 0 if there is none at the path
	b := ecs.Binding{Attachment: r.Attachment, Netns: r.Netns, NetnsID: ns.Ino, ID: conf.id, TaskARN: arn, Labels: conf.labels, Hops: conf.hops()}
	if b.Conf, err = Record(r.Keys); err != nil {
		return ecs.Binding{}, err
	}
	prev, err := r.PrevResult()
	if err != nil || prev == nil {
		return b, err
	}
	for _, ip := range prev.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			b.TaskAddrs = append(b.TaskAddrs, addr.Unmap())
		}
	}
	return b, nil
}

// result is what ADD answers: an IPAM plugin has addresses and routes, but no interfaces.
func result(conf *config, addrs []netip.Prefix) *current.Result {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for i, a := range conf.addresses {
		res.IPs = append(res.IPs, &current.IPConfig{
			Address: ipNet(addrs[i]),
			Gateway: a.pool.Gateway.AsSlice(),
		})
		res.Routes = append(res.Routes, a.routes...)
	}
	return res
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// del asks nothing of the configuration but where the bindings are: an address has to come
// free whatever has become of the keys that it was given by.
func del(ctx context.Context, r *cniedge.Request) error {
	place, err := parsePlace(r.Keys)
	if err != nil {
		return err
	}
	before, err := r.Before()
	if err != nil {
		return err
	}
	owner, named := r.Container, place.named
	if place.id != "" {
		owner, named = place.id, nil
	}
	return place.change(ctx, func(s *bindingdb.Store) error { return s.ReleaseBefore(before, r.Attachment, owner, named...) })
}

func check(ctx context.Context, r *cniedge.Request) error {
	place, err := parsePlace(r.Keys)
	if err != nil {
		return err
	}
	prev, err := r.CheckedResult()
	if err != nil {
		return err
	}
	given := make(map[string]bool, len(prev.IPs))
	for _, ip := range prev.IPs {
		given[ip.Address.String()] = true
	}
	err = fmt.Errorf("%w: %s does not exist", ecs.ErrNoBinding, place.path)
	if changeErr := place.change(ctx, func(s *bindingdb.Store) error {
		var b ecs.Binding
		if b, err = s.Lookup(r.Attachment); err != nil {
			return nil
		}
		for _, addr := range b.Addrs {
			if !given[addr.String()] {
				err = types.NewError(cniedge.CodeMismatch, fmt.Sprintf("%s is bound to %s, which prevResult does not have", r.Attachment, addr), "")
			}
		}
		return nil
	}); changeErr != nil {
		return changeErr
	}
	return err
}

func collect(ctx context.Context, r *cniedge.Request) error {
	place, err := parsePlace(r.Keys)
	if err != nil {
		return err
	}
	valid, given, err := r.ValidAttachments()
	if err != nil {
		return err
	}
	if !given {
		slog.Warn("GC without cni.dev/valid-attachments frees nothing", "network", r.Network)
		return nil
	}
	return place.change(ctx, func(s *bindingdb.Store) error {
		freed, err := s.Collect(r.Network, valid, r.Start)
		for _, b := range freed {
			slog.Info("freed", "container", b.Container, "ifname", b.IfName, "addrs", b.Addrs)
		}
		return err
	})
}

// status makes the bindings file if there is none, as an ADD does: that is the one sure way
// to know that an ADD could.
func status(ctx context.Context, r *cniedge.Request) error {
	conf, err := parseConfig(r.Keys)
	if err != nil {
		return err
	}
	s, err := bindingdb.Open(ctx, conf.path, bindingdb.Options{Create: true, Wait: conf.wait})
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Room(conf.wants()...)
}

// change does something with the bindings file, nothing if there is none.
func (p place) change(ctx context.Context, do func(*bindingdb.Store) error) error {
	s, err := bindingdb.Open(ctx, p.path, bindingdb.Options{Wait: p.wait})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}
