package bindingdb

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"taskmeta/internal/ecs"
)

// writeAWS writes a file as AWS's plugin leaves it: text keys, and values behind libkv's
// counter.
func writeAWS(t testing.TB, path string, entries ...string) {
	t.Helper()
	edit(t, path, func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(bucketAWS)
		for i, entry := range entries {
			key, id, _ := strings.Cut(entry, " ")
			value := binary.LittleEndian.AppendUint64(nil, uint64(i+1))
			err = errors.Join(err, bucket.Put([]byte(key), append(value, id...)))
		}
		return err
	})
}

func TestTakeOverOfAnAWSFile(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	writeAWS(t, path, "169.254.172.1 GateWay", "169.254.172.2 pause1", "169.254.172.3 pause2",
		"169.254.172.5 pause1", "lastKnownIP 169.254.172.3")

	r := newReader(t, path)
	if b := mustBinding(t, r, netip.MustParseAddr("169.254.172.3")); b.Owner() != "pause2" {
		t.Errorf("a reader before the take-over: %+v", b)
	}
	want := Want{Pool: mustPool(t, "169.254.172.0/22")}
	for i, addr := range []string{"169.254.172.4", "169.254.172.6"} {
		if b := mustAcquire(t, path, attachment(i), want); b.Addrs[0].Addr() != netip.MustParseAddr(addr) {
			t.Errorf("ADD got %v, want %s", b.Addrs, addr)
		}
	}
	named := Want{Pool: want.Pool, Addr: netip.MustParsePrefix("169.254.172.2/22")}
	if _, err := acquire(t, path, attachment(9), named); !errors.Is(err, ecs.ErrAddrTaken) || !strings.Contains(err.Error(), "pause1") {
		t.Errorf("an address of the AWS plugin's: %v", err)
	}
	if err := with(t, path, func(s *Store) error { return s.Release(attachment(9), "pause1") }); err != nil {
		t.Fatal(err)
	}
	for addr, owner := range map[string]string{"169.254.172.2": "", "169.254.172.5": "", "169.254.172.3": "pause2"} {
		b, err := r.Binding(netip.MustParseAddr(addr))
		if owner == "" && !errors.Is(err, ecs.ErrNoBinding) || owner != "" && (err != nil || b.Owner() != owner) {
			t.Errorf("%s after DEL of pause1: %+v, %v", addr, b, err)
		}
	}
	mustAcquire(t, path, attachment(9), named)
}

// That plugin takes an address without an ID, which is freed by itself. One with an ID is
// its owner's, and those of ours are their attachments'.
func TestReleaseByAddressOfWhatAWSRecorded(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	writeAWS(t, path, "169.254.172.2 ", "169.254.172.3 ", "169.254.172.4 pause")
	b := mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "169.254.172.0/22")})
	for _, named := range []string{"169.254.172.2", "169.254.172.4", "169.254.172.9", b.Addrs[0].Addr().String()} {
		if err := with(t, path, func(s *Store) error {
			return s.Release(attachment(9), "c9", netip.MustParseAddr(named))
		}); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := newReader(t, path).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	left := make(map[string]bool)
	for _, b := range snapshot.All() {
		for _, p := range b.Addrs {
			left[p.Addr().String()] = true
		}
	}
	if want := map[string]bool{"169.254.172.3": true, "169.254.172.4": true, b.Addrs[0].Addr().String(): true}; !maps.Equal(left, want) {
		t.Errorf("left: %v, want %v", left, want)
	}
}

func TestGatewaysOfAnAWSFile(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	writeAWS(t, path, "10.0.0.2 GateWay", "10.0.0.3 pause")
	if b := mustAcquire(t, path, attachment(1), Want{Pool: mustPool(t, "10.0.0.0/29")}); b.Addrs[0].Addr() != netip.MustParseAddr("10.0.0.4") {
		t.Errorf("got %v, want 10.0.0.4", b.Addrs)
	}
}

func TestForeignDatabase(t *testing.T) {
	t.Parallel()
	path := newPath(t)
	edit(t, path, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("users")); return err })
	if err := with(t, path, func(*Store) error { return nil }); !errors.Is(err, ecs.ErrDamaged) || !strings.Contains(err.Error(), `"users"`) {
		t.Errorf("someone else's database: %v", err)
	}
}
