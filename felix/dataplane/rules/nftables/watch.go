package nftables

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Watch follows the kernel's notifications until ctx ends, and calls wake when others changed our tables, or when a
// workload's device came or went. It may run once.
func (d *Driver) Watch(ctx context.Context, wake dataplane.Wake) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.watchTables(ctx, wake) })
	group.Go(func() error { return d.watchDevices(ctx, wake) })
	return group.Wait()
}

func (d *Driver) watchTables(ctx context.Context, wake dataplane.Wake) error {
	return d.events.Listen(ctx, func(e nlsock.Event) {
		if c, ok := nft.ReadChange(e); ok && c.Table.Name == tableName {
			if drift, ours := d.on(c); ours {
				wake(drift)
			}
		}
	}, func() {
		d.Resync()
		wake()
	})
}

// on notes what must be read anew.
func (d *Driver) on(c nft.Change) (dataplane.Drift, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.tables() {
		if f.Table != c.Table {
			continue
		}
		f.stale = true
		if c.What == "rule" {
			f.touched[c.Name] = struct{}{}
		}
		drift := dataplane.Drift{What: c.What + " changed", Object: dataplane.Object{Kind: dataplane.KindRule, Key: c.Table.String() + " " + c.Name}}
		if c.What == "set" || c.What == "element" {
			drift.Kind = dataplane.KindSet
		}
		if c.Gone {
			drift.What = c.What + " removed"
		}
		return drift, true
	}
	return dataplane.Drift{}, false
}
