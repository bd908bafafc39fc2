package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/ecs"
	"taskmeta/internal/ipam"
	"taskmeta/internal/link"
)

// restoreMissing is restore if the bindings file is missing: the next ADD would make an empty one,
// and give addresses that running tasks have.
func (a *Attacher) restoreMissing(ctx context.Context) error {
	if _, err := os.Stat(a.DB); !errors.Is(err, fs.ErrNotExist) {
		return nil // whatever else is wrong shows when it is read
	}
	return a.restore(ctx)
}

// restore records again the attachments of all networks that have their veth pairs and
// addresses, and no binding: somebody has removed the file, or put another in its place. So
// running tasks keep their addresses. The file is locked all the while, and an ADD has its
// binding before its task has an address, a DEL gives it back when the veth pair is gone: so
// what lacks a binding here has lost it. Without such an attachment no file is made.
func (a *Attacher) restore(ctx context.Context) (err error) {
	unbound, err := a.unbound()
	if err != nil || len(unbound) == 0 {
		return err
	}
	s, err := bindingdb.Open(ctx, a.DB, bindingdb.Options{Create: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	found, _, err := Survey(a.places()...)
	if err != nil {
		return err
	}
	var lost []ecs.Binding
	for _, b := range found {
		if v, ok := unbound[b.Attachment]; ok && v.Name == link.HostName(b.Attachment) {
			b.Conf = a.conf(b.Attachment)
			lost = append(lost, b)
		}
	}
	restored, err := s.Adopt(lost)
	if err != nil {
		return fmt.Errorf("recording again what is attached: %w", err)
	}
	if len(restored) > 0 {
		a.Logger.Warn("bindings were lost, and are recorded again from the interfaces that exist: somebody has removed the bindings file, or replaced it", "path", a.DB, "bindings", len(restored))
	}
	return nil
}

// conf returns the part of the ADD's configuration that a binding records, or nil, which stands
// for the defaults, if that is not known.
func (a *Attacher) conf(key ecs.Attachment) json.RawMessage {
	list, err := a.configuration(key)
	if err == nil {
		list, err = a.configure(list, nil)
	}
	if err != nil {
		return nil
	}
	for _, plugin := range list.Plugins {
		var keys map[string]json.RawMessage
		if plugin.Network.Type != "ecs-bridge" || json.Unmarshal(plugin.Bytes, &keys) != nil {
			continue
		}
		if text, err := ipam.Record(keys); err == nil {
			return text
		}
	}
	return nil
}
