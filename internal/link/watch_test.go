package link

import (
	"context"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestWatchTellsOfChanges(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var changed <-chan struct{}
	onHost(t, func(h *Host) (err error) {
		if changed, err = Watch(ctx, h.NS, nil); err != nil {
			return err
		}
		for range 2 { // made, and made again
			b, err := h.EnsureBridge("br0", 1500)
			if err != nil {
				return err
			}
			if _, ok := <-changed; !ok {
				t.Fatal("no change seen of the bridge being made")
			}
			if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: b.Index}}); err != nil {
				return err
			}
			if _, ok := <-changed; !ok {
				t.Fatal("no change seen of the bridge being removed")
			}
		}
		return nil
	})
	cancel()
	for range changed { // ends: the channel is closed with the context
	}
}
