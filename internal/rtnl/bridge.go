package rtnl

import (
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Settings are a bridge port's of one byte, by the numbers of their attributes
// (IFLA_BRPORT_LEARNING, …).
type Settings struct {
	has   uint64
	value [64]byte
}

// Get returns a setting, and false for one that the kernel does not know.
func (s *Settings) Get(attribute int) (byte, bool) {
	return s.value[attribute], s.has&(1<<attribute) != 0
}

func readSettings(nested []byte) *Settings {
	var s Settings
	each(nested, func(kind uint16, value []byte) {
		if int(kind) < len(s.value) && len(value) == 1 {
			s.value[kind], s.has = value[0], s.has|1<<kind
		}
	})
	return &s
}

// BridgePorts lists the ports of a bridge, of which no more is read than Name, Index, Master,
// Up, Carrier and Port. Of a thousand it takes a fifth of the time of [Conn.Links].
func (c *Conn) BridgePorts(bridge int) ([]Link, error) {
	all, err := list(c, NewStep(unix.RTM_GETLINK, unix.NLM_F_DUMP, "listing the ports of bridges", nl.NewIfInfomsg(unix.AF_BRIDGE)), readBridgePort)
	ports := all[:0]
	for _, l := range all {
		if l.Master == bridge && l.Index != bridge {
			ports = append(ports, l)
		}
	}
	return ports, err
}

func readBridgePort(message []byte) (Link, error) {
	if len(message) < unix.SizeofIfInfomsg {
		return Link{}, unix.EINVAL
	}
	flags := binary.NativeEndian.Uint32(message[8:])
	l := Link{
		Index: int(int32(binary.NativeEndian.Uint32(message[4:]))),
		Up:    flags&unix.IFF_UP != 0, Carrier: flags&unix.IFF_LOWER_UP != 0, PeerNetns: -1,
	}
	each(message[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(value)
		case unix.IFLA_MASTER:
			if len(value) == 4 {
				l.Master = int(int32(binary.NativeEndian.Uint32(value)))
			}
		case unix.IFLA_PROTINFO:
			l.Port = readSettings(value)
		}
	})
	return l, nil
}
