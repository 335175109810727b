package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/dataplane/route"
	"github.com/muslin-net/muslin/felix/dataplane/rules"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Drivers are the drivers of this node's kernel as one. The order of an Apply: links and tunnels, then rules, then
// routes, so that nothing is led to an endpoint before its rules are there.
type Drivers struct {
	Links   *link.Driver
	tunnels *tunnel.Driver
	rules   *rules.Driver
	routes  *route.Table
	log     *slog.Logger
}

// OpenDrivers opens all drivers on the caller's network namespace.
func OpenDrivers(log *slog.Logger) (*Drivers, error) {
	d := &Drivers{log: log}
	var err error
	if d.Links, err = link.New(); err != nil {
		return nil, err
	}
	if d.tunnels, err = tunnel.New(); err != nil {
		return nil, err
	}
	if d.rules, err = rules.New(rules.Config{Log: log}); err != nil {
		return nil, err
	}
	if d.routes, err = route.New(route.Config{Log: log}); err != nil {
		return nil, err
	}
	return d, nil
}

// Close releases the drivers; what they programmed stays.
func (d *Drivers) Close() error {
	return errors.Join(d.routes.Close(), d.rules.Close(), d.tunnels.Close(), d.Links.Close())
}

// Update takes changes of the desired state.
func (d *Drivers) Update(c desired.Changes) {
	d.Links.Update(c.Links, c.Sysctls)
	d.tunnels.Update(c.VXLANs, c.Neighbors, c.FDB)
	d.rules.Update(c.Firewall)
	d.routes.Update(c.Routes)
}

// Apply makes the kernel agree. A driver that fails does not keep the others from their work: what is not programmed is
// closed.
func (d *Drivers) Apply(ctx context.Context) error {
	return errors.Join(d.Links.Apply(ctx), d.tunnels.Apply(ctx), d.rules.Apply(ctx), d.routes.Apply(ctx))
}

// Whole tells that all but routes is known.
func (d *Drivers) Whole() {
	d.tunnels.Whole()
	d.rules.Whole()
}

// RoutesWhole tells that all routes are known.
func (d *Drivers) RoutesWhole() { d.routes.Whole() }

// Resync has everything read anew.
func (d *Drivers) Resync() {
	d.Links.Resync()
	d.tunnels.Resync()
	d.rules.Resync()
	d.routes.Resync()
}

// Holds tells what of an endpoint is not in the kernel as wanted.
func (d *Drivers) Holds(e state.Endpoint) error {
	var errs []error
	if !d.rules.InSync() {
		errs = append(errs, errors.New("rules are not all programmed"))
	}
	if e.Leaving {
		return errors.Join(errs...)
	}
	if !d.Links.Programmed(e.Interface) {
		errs = append(errs, fmt.Errorf("interface %s is not there or not set up", e.Interface))
	}
	for _, a := range e.Addresses {
		key := desired.WorkloadRoute(a, e.Interface, desired.ProtocolBoot).Key()
		if !d.routes.Programmed(key) {
			errs = append(errs, fmt.Errorf("route %s is not programmed", key))
		}
	}
	return errors.Join(errs...)
}

// Programmed tells whether the blackhole of a block, or the route to a workload's address, is in the kernel.
func (d *Drivers) Programmed(dst netip.Prefix) bool {
	key := desired.RouteKey{Table: desired.TableMain, Dst: dst}
	if dst.IsSingleIP() {
		key.Metric = desired.WorkloadMetric
	}
	return d.routes.Programmed(key)
}

// Entries lists everything, desired beside actual.
func (d *Drivers) Entries() []dataplane.Entry {
	out := append(d.Links.Entries(), d.tunnels.Entries()...)
	out = append(out, d.rules.Entries()...)
	return append(out, d.routes.Entries()...)
}

// Watch calls wake whenever the kernel was changed by someone else, until ctx ends.
func (d *Drivers) Watch(ctx context.Context, wake func()) error {
	told := func(drifts ...dataplane.Drift) {
		for _, drift := range drifts {
			d.log.Info("the kernel was changed by someone else", "object", drift.String(), "what", drift.What)
		}
		wake()
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, watch := range []func(context.Context, dataplane.Wake) error{d.Links.Watch, d.tunnels.Watch, d.rules.Watch, d.routes.Watch} {
		group.Go(func() error { return watch(ctx, told) })
	}
	return group.Wait()
}
