package bindingdb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"taskmeta/internal/ecs"
)

// schema is the version of the layout below. Later versions count up.
const schema = "1"

var (
	// address (4 or 16 bytes) -> binding (JSON), once for each address of the binding
	bucketBindings = []byte("bindings")
	// network NUL container NUL interface -> addresses, as text with blanks between
	bucketAttachments = []byte("attachments")
	// schema; boot; for each subnet the address granted last; for each gateway the network
	// that was the first to have it
	bucketMeta = []byte("meta")

	keySchema = []byte("schema")
	keyBoot   = []byte("boot")
)

// A view is a transaction on a file of our schema.
type view struct {
	path                        string
	bindings, attachments, meta *bbolt.Bucket
}

// errForeign: the file is not one of our schema but new, or of AWS's plugin.
var errForeign = errors.New("not a file of this schema")

// open returns the view of a transaction: errForeign or [ecs.ErrNewerSchema] if the
// file has another schema.
func open(tx *bbolt.Tx, path string) (view, error) {
	m := tx.Bucket(bucketMeta)
	if m == nil {
		return view{}, errForeign
	}
	if got := string(m.Get(keySchema)); got != schema {
		if _, err := strconv.Atoi(got); err != nil {
			return view{}, damaged(path, fmt.Sprintf("its schema is %q", got))
		}
		return view{}, fmt.Errorf("%w: %s has schema %q, this program knows %q; use the version that wrote it", ecs.ErrNewerSchema, path, got, schema)
	}
	v := view{path, tx.Bucket(bucketBindings), tx.Bucket(bucketAttachments), m}
	if v.bindings == nil || v.attachments == nil {
		return view{}, damaged(path, "a bucket is missing")
	}
	return v, nil
}

// format makes the buckets of our schema, empty, in place of those there were.
func format(tx *bbolt.Tx, path, boot string) (view, error) {
	for _, name := range [][]byte{bucketBindings, bucketAttachments, bucketMeta} {
		if err := tx.DeleteBucket(name); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
			return view{}, err
		}
		if _, err := tx.CreateBucket(name); err != nil {
			return view{}, err
		}
	}
	m := tx.Bucket(bucketMeta)
	if err := errors.Join(m.Put(keySchema, []byte(schema)), m.Put(keyBoot, []byte(boot))); err != nil {
		return view{}, err
	}
	return open(tx, path)
}

func attachmentKey(a ecs.Attachment) []byte {
	return []byte(a.Network + "\x00" + a.Container + "\x00" + a.IfName)
}

// taken reports whether an attachment or a gateway has the address.
func (v view) taken(addr netip.Addr) bool {
	return v.bindings.Get(addr.AsSlice()) != nil || v.meta.Get(gatewayKey(addr)) != nil
}

const gatewayPrefix = "gateway "

func gatewayKey(addr netip.Addr) []byte { return []byte(gatewayPrefix + addr.String()) }

// reserve keeps a gateway's address from being granted, in whatever network: the bridge
// has it. One that is held is [ecs.ErrAddrTaken].
func (v view) reserve(gateway netip.Addr, network string) error {
	key := gatewayKey(gateway)
	if v.meta.Get(key) != nil {
		return nil
	}
	b, err := v.binding(gateway)
	switch {
	case err == nil:
		return fmt.Errorf("%w: the gateway %s is held by %s; configure another gateway", ecs.ErrAddrTaken, gateway, describe(b))
	case !errors.Is(err, ecs.ErrNoBinding):
		return err
	}
	return v.meta.Put(key, []byte(network))
}

// gateways counts those of other gateways that a pool's subnet has.
func (v view) gateways(p ecs.Pool) (n uint64) {
	c := v.meta.Cursor()
	for key, _ := c.Seek([]byte(gatewayPrefix)); bytes.HasPrefix(key, []byte(gatewayPrefix)); key, _ = c.Next() {
		if addr, err := netip.ParseAddr(string(key[len(gatewayPrefix):])); err == nil && p.Grantable(addr) {
			n++
		}
	}
	return n
}

// binding returns the binding of an address, [ecs.ErrNoBinding] if there is none.
func (v view) binding(addr netip.Addr) (ecs.Binding, error) {
	raw := v.bindings.Get(addr.AsSlice())
	if raw == nil {
		return ecs.Binding{}, fmt.Errorf("%w for %s", ecs.ErrNoBinding, addr)
	}
	var b ecs.Binding
	if err := json.Unmarshal(raw, &b); err != nil {
		return ecs.Binding{}, damaged(v.path, fmt.Sprintf("the binding of %s: %v", addr, err))
	}
	return b, nil
}

// held returns the binding of an attachment, [ecs.ErrNoBinding] if there is none.
func (v view) held(a ecs.Attachment) (ecs.Binding, error) {
	text, _, _ := strings.Cut(string(v.attachments.Get(attachmentKey(a))), " ")
	if text == "" {
		return ecs.Binding{}, fmt.Errorf("%w for %s", ecs.ErrNoBinding, a)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return ecs.Binding{}, damaged(v.path, fmt.Sprintf("the addresses of %s: %v", a, err))
	}
	b, err := v.binding(addr)
	if errors.Is(err, ecs.ErrNoBinding) || err == nil && b.Attachment != a {
		return ecs.Binding{}, damaged(v.path, fmt.Sprintf("%s is not recorded as %s's", addr, a))
	}
	return b, err
}

// grant records a binding under each of its addresses and under its attachment.
func (v view) grant(b ecs.Binding) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return err
	}
	text := make([]string, len(b.Addrs))
	for i, p := range b.Addrs {
		if err := v.bindings.Put(p.Addr().AsSlice(), raw); err != nil {
			return err
		}
		text[i] = p.Addr().String()
	}
	return v.attachments.Put(attachmentKey(b.Attachment), []byte(strings.Join(text, " ")))
}

// revoke is the reverse of grant. An address that would be granted next is passed over,
// so that a straggler of its last holder does not meet a new one.
func (v view) revoke(b ecs.Binding) error {
	for _, p := range b.Addrs {
		if err := v.bindings.Delete(p.Addr().AsSlice()); err != nil {
			return err
		}
		pool, err := ecs.NewPool(p.Masked(), netip.Addr{})
		if err != nil {
			continue // an address recorded without its subnet
		}
		if next, err := pool.Next(v.last(pool.Subnet), v.taken); err == nil && next == p.Addr() {
			if err := v.setLast(pool.Subnet, next); err != nil {
				return err
			}
		}
	}
	return v.attachments.Delete(attachmentKey(b.Attachment))
}

func lastKey(subnet netip.Prefix) []byte { return []byte("last " + subnet.String()) }

// last is the address of a subnet that was granted last, or if that is not known, the last
// of its family that AWS's plugin granted; invalid if there is none.
func (v view) last(subnet netip.Prefix) netip.Addr {
	text := v.meta.Get(lastKey(subnet))
	if text == nil {
		text = v.meta.Get(lastKey(netip.PrefixFrom(subnet.Addr(), 0).Masked()))
	}
	addr, err := netip.ParseAddr(string(text))
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

func (v view) setLast(subnet netip.Prefix, addr netip.Addr) error {
	return v.meta.Put(lastKey(subnet), []byte(addr.String()))
}

// pick returns the address that a want is given, with the length of its subnet.
func (v view) pick(w Want) (netip.Prefix, error) {
	if w.Addr.IsValid() {
		if !v.taken(w.Addr.Addr()) {
			return w.Addr, nil
		}
		if network := v.meta.Get(gatewayKey(w.Addr.Addr())); network != nil {
			return netip.Prefix{}, fmt.Errorf("%w: %s is a gateway, first of network %q", ecs.ErrAddrTaken, w.Addr.Addr(), network)
		}
		b, err := v.binding(w.Addr.Addr())
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.Prefix{}, fmt.Errorf("%w: %s is held by %s", ecs.ErrAddrTaken, w.Addr.Addr(), describe(b))
	}
	addr, err := v.next(w.Pool)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(addr, w.Pool.Subnet.Bits()), v.setLast(w.Pool.Subnet, addr)
}

// next is the address of a pool that is to be granted next.
func (v view) next(p ecs.Pool) (netip.Addr, error) {
	addr, err := p.Next(v.last(p.Subnet), v.taken)
	if err != nil {
		return addr, fmt.Errorf("%w in %s: of %d addresses %d are held in %s; DEL or GC attachments that are gone, or configure a larger subnet",
			err, p.Subnet, p.Count()-v.gateways(p), v.count(p.Subnet), v.path)
	}
	return addr, nil
}

// count is the number of addresses of a subnet that are held.
func (v view) count(subnet netip.Prefix) int {
	n := 0
	c := v.bindings.Cursor()
	for key, _ := c.Seek(subnet.Addr().AsSlice()); key != nil; key, _ = c.Next() {
		addr, ok := netip.AddrFromSlice(key)
		if ok && subnet.Contains(addr) {
			n++
		} else if addr.Is4() == subnet.Addr().Is4() {
			break
		}
	}
	return n
}

// network calls each attachment of a network in turn until fn returns an error.
func (v view) network(name string, fn func(ecs.Attachment) error) error {
	prefix := []byte(name + "\x00")
	c := v.attachments.Cursor()
	for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
		container, ifname, ok := strings.Cut(string(key[len(prefix):]), "\x00")
		if !ok {
			return damaged(v.path, fmt.Sprintf("the attachment %q", key))
		}
		if err := fn(ecs.Attachment{Network: name, Container: container, IfName: ifname}); err != nil {
			return err
		}
	}
	return nil
}

// describe names the holder of a binding in messages.
func describe(b ecs.Binding) string {
	if b.Network == "" {
		return fmt.Sprintf("%q, as recorded by the AWS plugin", b.ID)
	}
	return b.Attachment.String()
}
