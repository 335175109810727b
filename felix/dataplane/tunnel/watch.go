package tunnel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
)

// Watch follows the kernel's notifications until ctx ends, and calls wake whenever Apply has something to repair. A
// subscription that is lost (the kernel drops notifications when we are slow) is opened again, with everything read anew.
func (d *Driver) Watch(ctx context.Context, wake dataplane.Wake) error {
	return dataplane.Watch(ctx, wake, d.Resync, d.follow)
}

func (d *Driver) follow(ctx context.Context, wake dataplane.Wake) error {
	done, lost := make(chan struct{}), make(chan error, 2)
	defer close(done)
	report := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	links, neighbors, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.NeighUpdate, 1024), make(chan netlink.AddrUpdate, 64)
	if err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: report}),
		netlink.NeighSubscribeWithOptions(neighbors, done, netlink.NeighSubscribeOptions{ErrorCallback: report}),
		netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: report}),
	); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	tell := func(drift dataplane.Drift, due bool) {
		if due {
			wake(drift)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err
		case u, ok := <-links:
			if !ok {
				return errors.New("subscription to links ended")
			}
			tell(d.onLink(u))
		case u, ok := <-neighbors:
			if !ok {
				return errors.New("subscription to neighbours ended")
			}
			tell(d.onNeighbor(u))
		case u, ok := <-addrs:
			if !ok {
				return errors.New("subscription to addresses ended")
			}
			tell(d.onAddress(u))
		}
	}
}

// onLink finds out whether a device of ours was removed or changed, or a link came that neighbours wait for.
func (d *Driver) onLink(u netlink.LinkUpdate) (dataplane.Drift, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := u.Attrs().Name
	drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindLink, Key: name}}
	if lost, due := d.lost(u); due {
		return lost, true
	}
	if u.Header.Type == unix.RTM_DELLINK {
		if d.index[name] == u.Attrs().Index {
			d.forget(name)
		}
		return drift, false
	}
	if ours(name) {
		// What is said may be of a device that Apply has replaced since.
		now, err := d.handle.LinkByName(name)
		if err != nil || now.Attrs().Index != u.Attrs().Index {
			return drift, false
		}
		if !isVXLAN(now) {
			d.foreign[name] = now
			return drift, false // that ours has gone, if it was there, was said before
		}
	}
	known := d.index[name] == u.Attrs().Index
	d.index[name] = u.Attrs().Index
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
func (d *Driver) lost(u netlink.LinkUpdate) (dataplane.Drift, bool) {
	for _, name := range devices {
		l := d.foreign[name]
		foreign := l != nil && l.Attrs().Index == u.Attrs().Index
		if !foreign && d.index[name] != u.Attrs().Index {
			continue // neither, or it was made anew meanwhile
		}
		drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindLink, Key: name}, What: "removed"}
		if u.Header.Type != unix.RTM_DELLINK {
			now, err := d.handle.LinkByIndex(u.Attrs().Index)
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

func (d *Driver) onAddress(u netlink.AddrUpdate) (dataplane.Drift, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range devices {
		if d.index[name] == u.LinkIndex {
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

func (d *Driver) onNeighbor(u netlink.NeighUpdate) (dataplane.Drift, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	link := ""
	for name, i := range d.index {
		if i == u.LinkIndex {
			link = name
		}
	}
	if u.Family == unix.AF_BRIDGE {
		return d.onFDB(u, link)
	}
	n := desired.Neighbor{Link: link, Addr: addrOf(u.IP), MAC: macOf(u.HardwareAddr)}
	k := n.Key()
	drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindNeighbor, Key: k.String()}}
	_, wanted := d.neighbors.Desired(k)
	if !wanted && !ours(link) {
		return drift, false
	}
	if u.Type == unix.RTM_DELNEIGH || u.State&netlink.NUD_PERMANENT == 0 {
		d.neighbors.DeleteActual(k)
		drift.What = "removed"
		return drift, wanted
	}
	if have, ok := d.neighbors.Actual(k); ok && have == n {
		return drift, false
	}
	d.neighbors.SetActual(k, n)
	drift.What = "changed"
	want, _ := d.neighbors.Desired(k)
	return drift, want != n
}

func (d *Driver) onFDB(u netlink.NeighUpdate, link string) (dataplane.Drift, bool) {
	f, ok := fdbOf(u.Neigh, link)
	k := f.Key()
	drift := dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindFDB, Key: k.String()}}
	want, wanted := d.fdb.Desired(k)
	switch {
	case !ours(link):
		return drift, false
	case u.Type == unix.RTM_DELNEIGH:
		if _, had := d.fdb.Actual(k); !had {
			return drift, false
		}
		d.fdb.DeleteActual(k)
		drift.What = "removed"
		return drift, wanted
	case !ok:
		return drift, false
	}
	d.fdb.SetActual(k, f)
	drift.What = "changed"
	return drift, want != f
}
