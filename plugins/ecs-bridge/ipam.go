package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"taskmeta/internal/cniedge"
	"taskmeta/internal/link"
)

// An ipam is the plugin that addresses are delegated to. It is run here rather than by
// cni/pkg/invoke, which links an HTTP client and so costs each start half a millisecond.
type ipam struct {
	name, path string
	request    *cniedge.Request // ours: its configuration is passed on as it is
}

// findIPAM looks for the plugin in the directories of CNI_PATH.
func findIPAM(r *cniedge.Request, name string) (*ipam, error) {
	if !strings.ContainsRune(name, filepath.Separator) {
		for _, dir := range filepath.SplitList(r.Path) {
			path := filepath.Join(dir, name)
			if unix.Access(path, unix.X_OK) == nil {
				return &ipam{name, path, r}, nil
			}
		}
	}
	shown, err := json.Marshal(name)
	if err != nil {
		return nil, err
	}
	return nil, cniedge.BadKey("ipam.type", shown, "the name of a program in CNI_PATH, which is "+r.Path)
}

// run runs a verb of the plugin and returns what it wrote. An error that it answered with
// is a [types.Error], code and all; one that it has not is none.
func (p *ipam) run(ctx context.Context, verb string) ([]byte, error) {
	out, status, err := p.start(ctx, verb)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s of IPAM plugin %s: %w", verb, p.name, err)
	case status.Exited() && status.ExitStatus() == 0:
		return out, nil
	}
	var answer types.Error
	if json.Unmarshal(out, &answer) == nil && answer.Code != 0 {
		return nil, fmt.Errorf("%s of IPAM plugin %s: %w", verb, p.name, &answer)
	}
	how := fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		how = status.Signal().String()
	}
	return nil, fmt.Errorf("%s of IPAM plugin %s: it ended without an answer (%s): %s", verb, p.name, how, bytes.TrimSpace(out))
}

// start starts the plugin and waits for its end. Should this process be killed, so is the
// plugin: it must not go on taking an address after the runtime has gone on to undo the
// ADD. Its log is ours.
//
// This does by hand what os/exec would, which starts a process more to learn what the
// kernel can do: 0.8 ms of an ADD that takes 8.
func (p *ipam) start(ctx context.Context, verb string) (out []byte, status syscall.WaitStatus, err error) {
	// The kernel kills the child when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stdin, config, err := os.Pipe()
	if err != nil {
		return nil, 0, fmt.Errorf("making a pipe: %w", err)
	}
	defer config.Close()
	answer, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return nil, 0, fmt.Errorf("making a pipe: %w", err)
	}
	defer answer.Close()

	pidfd := -1
	pid, err := syscall.ForkExec(p.path, []string{p.path}, &syscall.ProcAttr{
		Env:   p.request.Environ(verb),
		Files: []uintptr{stdin.Fd(), stdout.Fd(), os.Stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, PidFD: &pidfd},
	})
	stdin.Close()
	stdout.Close()
	if err != nil {
		return nil, 0, fmt.Errorf("starting %s: %w", p.path, err)
	}
	defer unix.Close(pidfd)
	defer context.AfterFunc(ctx, func() {
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		answer.Close() // a child of the plugin may hold the other end
	})()

	written := make(chan struct{})
	go func() {
		defer close(written)
		config.Write(p.request.Config) // fails if the plugin ends before it has read all, which it may
		config.Close()
	}()
	out, err = io.ReadAll(answer)
	for {
		_, waitErr := syscall.Wait4(pid, &status, 0, nil)
		if waitErr == nil {
			break
		}
		if waitErr != syscall.EINTR {
			return nil, 0, fmt.Errorf("waiting for its end: %w", waitErr)
		}
	}
	<-written
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out, status, err
}

// do runs a verb that has no result.
func (p *ipam) do(ctx context.Context, verb string) error {
	_, err := p.run(ctx, verb)
	return err
}

// A grant is what the IPAM plugin gave.
type grant struct {
	result   *current.Result
	addrs    []netip.Prefix
	gateways []netip.Prefix // of the same subnets
	routes   []link.Route
}

// add asks for addresses, in the configuration's version of CNI.
func (p *ipam) add(ctx context.Context, version string) (grant, error) {
	out, err := p.run(ctx, "ADD")
	if err != nil {
		return grant{}, err
	}
	g, err := parseGrant(out, version)
	if err != nil {
		return grant{}, fmt.Errorf("answer of IPAM plugin %s: %w", p.name, err)
	}
	return g, nil
}

func parseGrant(out []byte, version string) (grant, error) {
	answer, err := create.Create(version, out)
	if err != nil {
		return grant{}, fmt.Errorf("reading a result of CNI %s: %w", version, err)
	}
	result, err := current.NewResultFromResult(answer)
	if err != nil {
		return grant{}, fmt.Errorf("converting a result of CNI %s: %w", version, err)
	}
	return newGrant(result)
}

func newGrant(result *current.Result) (grant, error) {
	if len(result.IPs) == 0 {
		return grant{}, errors.New("it has no address: expected one at least")
	}
	g := grant{result: result}
	for _, ip := range result.IPs {
		if ip == nil {
			return grant{}, errors.New("an address is null")
		}
		addr, ok := prefix(ip.Address)
		if !ok {
			return grant{}, fmt.Errorf("%s is no address in a subnet", ip.Address.String())
		}
		gateway, ok := netip.AddrFromSlice(ip.Gateway)
		if !ok {
			return grant{}, fmt.Errorf("the address %s has no gateway: expected one, for the bridge to have", addr)
		}
		if gateway = gateway.Unmap(); gateway.Is4() != addr.Addr().Is4() {
			return grant{}, fmt.Errorf("the address %s has the gateway %s: expected one of its own family", addr, gateway)
		}
		g.addrs = append(g.addrs, addr)
		g.gateways = append(g.gateways, netip.PrefixFrom(gateway, addr.Bits()))
	}
	for _, r := range result.Routes {
		if r == nil {
			return grant{}, errors.New("a route is null")
		}
		route, err := g.route(r)
		if err != nil {
			return grant{}, err
		}
		g.routes = append(g.routes, route)
	}
	return g, nil
}

// route converts a route. Without a gateway of its own it has the first of its family, as
// CNI's plugins understand it.
func (g grant) route(r *types.Route) (link.Route, error) {
	dst, ok := prefix(r.Dst)
	if !ok {
		return link.Route{}, fmt.Errorf("%s is no destination of a route", r.Dst.String())
	}
	out := link.Route{Dst: dst, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Scope: r.Scope}
	if r.Table != nil {
		out.Table = *r.Table
	}
	if gateway, ok := netip.AddrFromSlice(r.GW); ok {
		out.Gateway = gateway.Unmap()
		return out, nil
	}
	for _, gateway := range g.gateways {
		if gateway.Addr().Is4() == dst.Addr().Is4() {
			out.Gateway = gateway.Addr()
			break
		}
	}
	return out, nil
}

// prefix converts an address with its mask.
func prefix(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	addr = addr.Unmap()
	if !ok || bits != addr.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones), true
}
