package ipip

import (
	"context"
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// Watch follows the kernel's notifications of devices, addresses, qdiscs and filters until ctx ends, and calls wake
// whenever Apply has something to repair. It may run once.
func (d *Driver) Watch(ctx context.Context, wake dataplane.Wake) error {
	return d.events.Listen(ctx, func(e nlsock.Event) {
		if drifts, due := d.on(e); due {
			wake(drifts...)
		}
	}, func() {
		d.Resync()
		wake()
	})
}

// watch has notifications about devices heeded.
func (d *Driver) watch(links ...netlink.Link) {
	if d.watched == nil {
		d.watched = map[int]struct{}{}
	}
	for _, l := range links {
		d.watched[l.Attrs().Index] = struct{}{}
	}
}

// on takes in a notification and tells whether Apply is due.
func (d *Driver) on(e nlsock.Event) (drifts []dataplane.Drift, due bool) {
	// ifinfomsg, ifaddrmsg and tcmsg all have the index of the device in the same place.
	const header = 8
	if len(e.Body) < header {
		return nil, false
	}
	index := int(int32(nlsock.U32(e.Body[4:])))
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.watched[index]; !ok && !d.named(e) {
		return nil, false
	}
	if e.Kind == unix.RTM_DELLINK {
		delete(d.watched, index)
	}
	if d.dirty {
		return nil, true // what it waits for may have come
	}
	return d.inspect()
}

// named tells whether a device of a name that matters came or went.
func (d *Driver) named(e nlsock.Event) bool {
	if (e.Kind != unix.RTM_NEWLINK && e.Kind != unix.RTM_DELLINK) || len(e.Body) < unix.SizeofIfInfomsg {
		return false
	}
	for typ, v := range nlsock.Attrs(e.Body[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_IFNAME {
			name := nlsock.CString(v)
			return name == desired.IPIPDevice || name == PeerDevice || (d.want != nil && slices.Contains(bearers(*d.want), name))
		}
	}
	return false
}

// inspect goes through what Apply would do, up to the first thing to write.
func (d *Driver) inspect() ([]dataplane.Drift, bool) {
	if !d.probed && d.want != nil {
		return nil, true
	}
	d.dry = true
	err := d.agree()
	d.dry = false
	if err == nil {
		return nil, false
	}
	d.dirty = true
	if drift, ok := errors.AsType[*errDrift](err); ok {
		return []dataplane.Drift{{
			Object: dataplane.Object{Kind: dataplane.KindLink, Key: desired.IPIPDevice},
			What:   "changed; felix is going to " + drift.todo,
		}}, true
	}
	return nil, true // Apply meets the same error and reports it
}
