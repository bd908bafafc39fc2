package guard

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"taskmeta/internal/rtnl"
)

// dial opens nftables in the namespace of the socket. The caller closes it.
func dial(c *rtnl.Conn) (conn *nftables.Conn, err error) {
	err = c.NS.Do(func() (err error) {
		conn, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", explain(err))
	}
	return conn, nil
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// eq matches the bytes of a header from an offset on: at most 16, a register's length.
func eq(base expr.PayloadBase, offset uint32, fields ...[]byte) []expr.Any {
	want := slices.Concat(fields...)
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: base, Offset: offset, Len: uint32(len(want))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: want},
	}
}

// masked compares the bytes of a header at an offset under a mask.
func masked(base expr.PayloadBase, offset uint32, mask []byte, op expr.CmpOp, want []byte) []expr.Any {
	length := uint32(len(mask))
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: base, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: want},
	}
}

// meta compares what the kernel knows of a packet.
func meta(key expr.MetaKey, op expr.CmpOp, want []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: want},
	}
}

func counter() []expr.Any { return []expr.Any{&expr.Counter{}} }

func notrack() []expr.Any { return []expr.Any{&expr.Notrack{}} }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// explain adds the way out to what the kernel answers to a request about nftables.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it takes CAP_NET_ADMIN", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: the kernel must have CONFIG_NF_TABLES_NETDEV, CONFIG_NF_TABLES_INET and CONFIG_NETFILTER_INGRESS; without them, set guard to %q", err, Off)
	}
	return err
}
