package bindingdb

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"

	"taskmeta/internal/ecs"
)

// AWS's ecs-ipam keeps its addresses in the bucket IPAM through docker/libkv: the key is
// the address as text, the value an 8-byte index of libkv's and then the ID that it was
// given for. The gateway stands among them with an ID of its own, and so does, under a
// key that is no address, the one used last.
var (
	bucketAWS = []byte("IPAM")
	idGateway = []byte("GateWay")
)

const libkvIndex = 8

// An awsFile is what a file of AWS's plugin says.
type awsFile struct {
	// bindings have an ID, which stands for the container as well, but neither a network
	// nor an interface: there is one for each ID, and its addresses are of unknown subnets.
	bindings []ecs.Binding
	gateways []netip.Addr
	last     []netip.Addr
}

// readAWS reads a file that is not of our schema. One without any bucket is a file of
// AWS's plugin that nothing was written to.
func readAWS(tx *bbolt.Tx, path string) (awsFile, error) {
	var file awsFile
	bucket := tx.Bucket(bucketAWS)
	if bucket == nil {
		if name, _ := tx.Cursor().First(); name != nil {
			return file, damaged(path, fmt.Sprintf("it is no bindings file but a database with the bucket %q", name))
		}
		return file, nil
	}
	index := make(map[string]int) // of bindings by ID
	err := bucket.ForEach(func(key, value []byte) error {
		if len(value) < libkvIndex {
			return damaged(path, fmt.Sprintf("the value of %q in the bucket %s has %d bytes", key, bucketAWS, len(value)))
		}
		id := value[libkvIndex:]
		addr, err := netip.ParseAddr(string(key))
		if err != nil {
			if last, err := netip.ParseAddr(string(id)); err == nil {
				file.last = append(file.last, last)
			}
			return nil
		}
		if bytes.Equal(id, idGateway) {
			file.gateways = append(file.gateways, addr)
			return nil
		}
		i, ok := index[string(id)]
		if !ok {
			i = len(file.bindings)
			index[string(id)] = i
			file.bindings = append(file.bindings, ecs.Binding{Attachment: awsAttachment(string(id)), ID: string(id)})
		}
		file.bindings[i].Addrs = append(file.bindings[i].Addrs, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	})
	return file, err
}

// awsAttachment is the key of the addresses that AWS's plugin recorded for an ID.
func awsAttachment(id string) ecs.Attachment { return ecs.Attachment{Container: id} }

// freeAWS frees an address that AWS's plugin recorded without an ID: there is nothing else
// to free it by. One with an ID is its owner's, whoever names it: a runtime may well DEL
// what it has failed to ADD. It reports whether it did.
func (v view) freeAWS(addr netip.Addr) (bool, error) {
	b, err := v.binding(addr)
	if errors.Is(err, ecs.ErrNoBinding) || err == nil && (b.Network != "" || b.ID != "") {
		return false, nil
	}
	if err == nil {
		err = v.revoke(b)
	}
	if err != nil {
		return false, err
	}
	b.Addrs = slices.DeleteFunc(b.Addrs, func(p netip.Prefix) bool { return p.Addr() == addr })
	if len(b.Addrs) == 0 {
		return true, nil
	}
	return true, v.grant(b)
}

// adoptAWS turns a file of AWS's plugin, or a new one, into one of our schema.
func adoptAWS(tx *bbolt.Tx, path, boot string) (bindings int, err error) {
	file, err := readAWS(tx, path)
	if err != nil {
		return 0, err
	}
	v, err := format(tx, path, boot)
	if err != nil {
		return 0, err
	}
	for _, b := range file.bindings {
		b.BootID = boot
		if err := v.grant(b); err != nil {
			return 0, err
		}
	}
	for _, addr := range file.gateways {
		if err := v.reserve(addr, ""); err != nil {
			return 0, err
		}
	}
	for _, addr := range file.last {
		if err := v.setLast(netip.PrefixFrom(addr, 0).Masked(), addr); err != nil {
			return 0, err
		}
	}
	if tx.Bucket(bucketAWS) != nil {
		return len(file.bindings), tx.DeleteBucket(bucketAWS)
	}
	return 0, nil
}
