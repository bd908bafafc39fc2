package link

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"taskmeta/internal/netns"
	"taskmeta/internal/rtnl"
)

// MoveTo moves the host's end of a veth pair, by which it leaves its bridge and goes down.
// Its name, alias and MAC address stay, and so does the task's end with its addresses and
// routes.
func (h *Host) MoveTo(v Veth, to *netns.NS) error {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(v.Index)
	return h.Do(rtnl.NewStep(unix.RTM_SETLINK, 0, "moving veth "+v.Name+" to "+to.Path(), info,
		nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.FD())))))
}

// Join makes the host's end of a veth pair a port of the bridge, without IPv6.
func (h *Host) Join(v Veth, b Bridge) error {
	return errors.Join(h.disableIPv6(v.Name), h.Do(setLink("making "+v.Name+" a port of "+b.Name, v.Name,
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(b.Index))))))
}

// BringUp brings the host's end up and does not wait until frames pass.
func (h *Host) BringUp(v Veth) error { return h.Do(setUp(v.Name)) }

// Made reports whether the bridge is one that was made here, by its MAC address.
func (b Bridge) Made() bool { return bytes.Equal(b.MAC, bridgeMAC) }

// DelBridge removes a bridge. One that is gone is as good as removed.
func (h *Host) DelBridge(b Bridge) error { return h.Do(delLink("bridge "+b.Name, b.Index)) }

// DelInterface removes the task's end of a veth pair whose other end was lost, and with it
// that. It must be the interface of that MAC address: another of its name is [ErrNameTaken].
func (t *Task) DelInterface(want Interface) error {
	l, err := t.Link(want.Name)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return err
	case l.Kind != "veth" || !bytes.Equal(l.MAC, want.MAC):
		return fmt.Errorf("%s: %w", want.Name, ErrNameTaken)
	}
	return t.Do(delLink("veth "+want.Name, l.Index))
}

func delLink(what string, index int) rtnl.Step {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(index)
	s := rtnl.NewStep(unix.RTM_DELLINK, 0, "removing "+what, info)
	s.Fine = unix.ENODEV
	return s
}

// VethOf reads the host's end of an attachment's veth pair from a link, and reports whether
// it is one.
func VethOf(l rtnl.Link) (Veth, bool) { return veth(l) }
