package tunnel

import (
	"context"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// Watch follows the kernel's notifications until ctx ends, and calls wake whenever Apply has something to repair. When
// notifications were lost (the kernel drops them when we are slow), everything is read anew. It may run once.
func (d *Driver) Watch(ctx context.Context, wake dataplane.Wake) error {
	return d.events.Listen(ctx, func(e nlsock.Event) {
		if drift, due := d.on(e); due {
			wake(drift)
		}
	}, func() {
		d.Resync()
		wake()
	})
}

// on takes in one notification and tells whether Apply is due.
func (d *Driver) on(e nlsock.Event) (dataplane.Drift, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e.Kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		header := unix.NlMsghdr{Type: e.Kind}
		if len(e.Body) < unix.SizeofIfInfomsg || e.Body[0] != unix.AF_UNSPEC {
			break // AF_BRIDGE: a bridge lost or gained a port
		}
		if l, err := netlink.LinkDeserialize(&header, e.Body); err == nil {
			return d.onLink(e.Kind, l.Attrs())
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(e.Body) < unix.SizeofNdMsg {
			break
		}
		if n, err := netlink.NeighDeserialize(e.Body); err == nil {
			return d.onNeighbor(e.Kind, *n)
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(e.Body) >= unix.SizeofIfAddrmsg {
			return d.onAddress(int(nlsock.U32(e.Body[4:])))
		}
	}
	return dataplane.Drift{}, false
}

// onLink finds out whether a device of ours was removed or changed, or a link came that neighbours wait for.
func (d *Driver) onLink(kind uint16, said *netlink.LinkAttrs) (dataplane.Drift, bool) {
	name := said.Name
	drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindLink, Key: name}}
	if lost, due := d.lost(kind, said.Index); due {
		return lost, true
	}
	if kind == unix.RTM_DELLINK {
		if d.index[name] == said.Index {
			d.forget(name)
		}
		return drift, false
	}
	if ours(name) {
		// What is said may be of a device that Apply has replaced since.
		now, err := d.handle.LinkByName(name)
		if err != nil || now.Attrs().Index != said.Index {
			return drift, false
		}
		if !isVXLAN(now) {
			d.foreign[name] = now
			return drift, false // that ours has gone, if it was there, was said before
		}
	}
	known := d.index[name] == said.Index
	d.index[name] = said.Index
	if !ours(name) {
		for k := range d.neighbors.Updates() {
			if k.Link == name && !known {
				drift.What = "came"
				return drift, true
			}
		}
		for _, v := range d.vxlans.Updates() {
			if v.Parent == name {
				drift.What = "came"
				return drift, true
			}
		}
		return drift, false
	}
	return d.compare(drift)
}

// lost finds out whether a device of ours went away, or another's that was in its place: it was removed, or has another name.
func (d *Driver) lost(kind uint16, index int) (dataplane.Drift, bool) {
	for _, name := range devices {
		l := d.foreign[name]
		foreign := l != nil && l.Attrs().Index == index
		if !foreign && d.index[name] != index {
			continue // neither, or it was made anew meanwhile
		}
		drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindLink, Key: name}, What: "removed"}
		if kind != unix.RTM_DELLINK {
			now, err := d.handle.LinkByIndex(index)
			if err != nil || now.Attrs().Name == name {
				return drift, false // its removal comes by itself
			}
			drift.What = "renamed to " + now.Attrs().Name
		}
		if foreign {
			delete(d.foreign, name)
			drift.What = "of somebody else " + drift.What
			return drift, true
		}
		_, had := d.vxlans.Actual(name)
		d.forget(name)
		return drift, had
	}
	return dataplane.Drift{}, false
}

func (d *Driver) onAddress(index int) (dataplane.Drift, bool) {
	for _, name := range devices {
		if d.index[name] == index {
			return d.compare(dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindLink, Key: name}})
		}
	}
	return dataplane.Drift{}, false
}

// compare reads one of our devices anew and tells whether it is as we left it.
func (d *Driver) compare(drift dataplane.Drift) (dataplane.Drift, bool) {
	have, tracked := d.vxlans.Actual(drift.Key)
	link, err := d.handle.LinkByName(drift.Key)
	if err != nil || !tracked {
		return drift, false // its removal, or the end of its making, comes by itself
	}
	v, ok := link.(*netlink.Vxlan)
	if !ok {
		return drift, false
	}
	names := map[int]string{}
	if parent, err := d.handle.LinkByIndex(v.VtepDevIndex); err == nil {
		names[v.VtepDevIndex] = parent.Attrs().Name
	}
	now := d.describe(v, names)
	if now == have {
		return drift, false
	}
	d.vxlans.SetActual(drift.Key, now)
	drift.What = "changed"
	return drift, !d.vxlans.InSync()
}

func (d *Driver) onNeighbor(kind uint16, said netlink.Neigh) (dataplane.Drift, bool) {
	link := ""
	for name, i := range d.index {
		if i == said.LinkIndex {
			link = name
		}
	}
	if said.Family == unix.AF_BRIDGE {
		return d.onFDB(kind, said, link)
	}
	k, mac := desired.NeighborKey{Link: link, Addr: addrOf(said.IP)}, macOf(said.HardwareAddr)
	drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindNeighbor, Key: k.String()}}
	want, wanted := d.neighbors.Desired(k)
	if !wanted && !ours(link) {
		return drift, false
	}
	if kind == unix.RTM_DELNEIGH || said.State&netlink.NUD_PERMANENT == 0 {
		d.neighbors.DeleteActual(k)
		drift.What = "removed"
		return drift, wanted
	}
	if have, ok := d.neighbors.Actual(k); ok && have == mac {
		return drift, false
	}
	d.neighbors.SetActual(k, mac)
	drift.What = "changed"
	return drift, !wanted || want != mac
}

func (d *Driver) onFDB(kind uint16, said netlink.Neigh, link string) (dataplane.Drift, bool) {
	remote, ok := fdbOf(said)
	k := desired.FDBKey{Link: link, MAC: macOf(said.HardwareAddr)}
	drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindFDB, Key: k.String()}}
	want, wanted := d.fdb.Desired(k)
	switch {
	case !ours(link):
		return drift, false
	case kind == unix.RTM_DELNEIGH:
		if _, had := d.fdb.Actual(k); !had {
			return drift, false
		}
		d.fdb.DeleteActual(k)
		drift.What = "removed"
		return drift, wanted
	case !ok:
		return drift, false
	}
	d.fdb.SetActual(k, remote)
	drift.What = "changed"
	return drift, want != remote
}
