package iptables

import (
	"context"
	"time"

	"github.com/muslin-net/muslin/felix/dataplane"
)

// pollEvery is how often is looked at what sends no notifications: sets, and tables of xtables.
const pollEvery = 500 * time.Millisecond

// eyes see that others change tables.
type eyes interface {
	// forget is called before the tables of a family are read: what was seen until now is not news any more.
	forget(f *family) error
	// wrote runs a write of ours to a table.
	wrote(f *family, table string, write func() error) error
	// poll marks families whose tables may not be as believed.
	poll(families []*family) error
	// follow calls changed when poll is worth it, until ctx ends. Where nothing tells of changes it only waits.
	follow(ctx context.Context, changed func()) error
	close() error
}

// Watch looks at the kernel until ctx ends, and calls wake when others changed what is ours. It may run once.
func (d *Driver) Watch(ctx context.Context, wake dataplane.Wake) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	changed := make(chan struct{}, 1)
	go func() {
		ended <- d.eyes.follow(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return <-ended
		case <-changed:
			d.look(ctx, wake, false)
		case <-tick.C:
			d.look(ctx, wake, true)
		}
	}
}

// look reads again what may have been changed, and wakes if something is to be repaired.
func (d *Driver) look(ctx context.Context, wake dataplane.Wake, atSets bool) {
	drifts, err := d.drifts(ctx, atSets)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		d.log.Warn("the firewall in the kernel cannot be read, trying again", "error", err)
		d.Resync()
		wake()
	case len(drifts) > 0:
		wake(drifts...)
	}
}

// drifts tells what was as wanted and is no longer.
func (d *Driver) drifts(ctx context.Context, atSets bool) (out []dataplane.Drift, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil
	}
	if err := d.eyes.poll(d.families); err != nil {
		return nil, err
	}
	for _, f := range d.families {
		if !f.read {
			continue
		}
		if atSets && !f.stale {
			seen, err := f.sets.check(ctx)
			if err != nil {
				return nil, err
			}
			if len(seen) > 0 {
				out = append(out, seen...)
				if err := f.sets.load(ctx, false); err != nil {
					return nil, err
				}
			}
		}
		if !f.stale {
			continue
		}
		var was []*kernelTable
		for _, t := range f.tables {
			if t.inSync() {
				was = append(was, t)
			}
		}
		if err := d.load(ctx, f); err != nil {
			return nil, err
		}
		for _, t := range was {
			out = append(out, t.drifts(f.String())...)
		}
	}
	return out, nil
}

// drifts lists what is due.
func (t *kernelTable) drifts(family string) (out []dataplane.Drift) {
	add := func(name, what string) {
		o := dataplane.Object{Kind: dataplane.KindRule, Key: family + " " + t.name + " " + name}
		out = append(out, dataplane.Drift{Object: o, What: what})
	}
	for _, name := range sorted(t.chains.Updates()) {
		if _, there := t.chains.Actual(name); there {
			add(name, "chain changed")
		} else {
			add(name, "chain removed")
		}
	}
	for _, name := range sorted(t.chains.Deletes()) {
		add(name, "chain added")
	}
	for name, h := range t.hooks {
		if !h.inPlace {
			add(name, "jump of ours removed or not in its place")
		}
	}
	return out
}
