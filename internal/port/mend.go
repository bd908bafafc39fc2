package port

import (
	"errors"
	"fmt"
	"io/fs"

	"taskmeta/internal/bootclock"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// ErrGone: the network namespace that a binding names is gone, or another has come to its
// path. The binding waits for its DEL.
var ErrGone = errors.New("the task's network namespace is gone")

// OpenTask opens the task's network namespace. Errors: [ErrGone].
func (s *Spec) OpenTask() (*link.Task, error) {
	id, err := netns.Identify(s.Binding.Netns)
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.Binding.NetnsID != 0 && id.Ino != s.Binding.NetnsID {
		return nil, fmt.Errorf("%s: %w", s.Binding.Netns, ErrGone)
	}
	if err != nil {
		return nil, err
	}
	return link.OpenTask(s.Binding.Netns)
}

// Check names the first thing of the port that is not as ADD left it: the host's end, which
// is on that bridge, and its guard.
func (s *Spec) Check(host *link.Host, b link.Bridge) error {
	v, ok, err := host.Veth(s.Binding.Attachment)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("veth %s is missing", link.HostName(s.Binding.Attachment))
	case v.Bridge != b.Index:
		return fmt.Errorf("veth %s is not a port of %s", v.Name, b.Name)
	case !v.Up:
		return fmt.Errorf("veth %s is down", v.Name)
	}
	if err := host.CheckAddrs(b, s.Grant.Gateways...); err != nil {
		return err
	}
	return s.Guarded(b, v).Check(host.Conn)
}

// CheckTask names the first thing of the task's end that is not as ADD left it. A route
// whose destination has another one is as good: earlier plugins' routes stay.
func (s *Spec) CheckTask() error {
	task, err := s.OpenTask()
	if err != nil {
		return err
	}
	defer task.Close()
	return task.CheckReach(s.Interface)
}

// Mend makes the port whole, whatever of it is missing but the veth pair itself. The chain
// comes before anything can pass, as in an ADD.
func (s *Spec) Mend(host *link.Host, b link.Bridge, v link.Veth) error {
	for _, gateway := range s.Grant.Gateways {
		if err := host.EnsureAddr(b, gateway); err != nil {
			return err
		}
	}
	p := s.Guarded(b, v)
	if p.CheckRules(host.Conn) != nil {
		if err := p.Install(host.Conn); err != nil {
			return err
		}
	}
	if v.Bridge != b.Index {
		if err := host.Join(v, b); err != nil {
			return err
		}
	}
	if err := p.Attach(host.Conn); err != nil {
		return err
	}
	if !v.Up {
		return host.BringUp(v)
	}
	return nil
}

// MendTask gives the task's end what it lacks.
func (s *Spec) MendTask() error {
	task, err := s.OpenTask()
	if err != nil {
		return err
	}
	defer task.Close()
	if err := errors.Join(task.SetUp(s.Interface), task.Configure(s.Interface)); err != nil {
		return fmt.Errorf("setting up %s in the task's namespace: %w", s.Binding.IfName, err)
	}
	return nil
}

// Make makes the veth pair anew, with the same addresses. What is left of the task's end,
// whose other end is in no namespace that is known, goes first.
func (s *Spec) Make(host *link.Host, b link.Bridge) (err error) {
	task, err := s.OpenTask()
	if err != nil {
		return err
	}
	defer task.Close()
	if err := task.DelInterface(s.Interface); err != nil {
		return err
	}
	v, err := host.MakeVeth(task, s.Binding.Attachment, b, s.Config.MTU, bootclock.Now(), string(s.Config.Guard))
	if err != nil {
		return err
	}
	if _, err := s.Config.Build(host, task, b, v, s.Binding.IfName, s.Grant); err != nil {
		return errors.Join(err, Detach(host, b.Name, v))
	}
	return nil
}

// Detach removes a veth pair and its guard.
func Detach(host *link.Host, bridge string, v link.Veth) error {
	return host.DelVeth(v, func() error { return guard.Remove(host.Conn, bridge, v.Name, guard.Mode(v.Guard) != guard.Off) })
}

// IsOf reports whether a binding's port is to stand on the bridge of that name, in the
// network namespace that is pinned there, "" being the host's.
func (s *Spec) IsOf(bridge, pin string) bool {
	switch named := s.Config.Netns; {
	case named == OnHost && pin != "", named != "" && named != OnHost && named != pin:
		return false
	}
	return s.Config.Bridge == bridge
}
