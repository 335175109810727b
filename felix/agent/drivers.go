package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/conntrack"
	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/dataplane/route"
	"github.com/muslin-net/muslin/felix/dataplane/rules"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Drivers are the drivers of this node's kernel as one. The order of an Apply: what looks at the sources of workloads, links and
// tunnels, then rules, then routes, so that nothing comes from an endpoint under another's address, and nothing is led to it before
// its rules are there.
type Drivers struct {
	Links   *link.Driver
	tunnels *tunnel.Driver
	ipip    Encapsulator
	rules   *rules.Rules
	routes  *route.Table
	drifts  *drifts
	table   *conntrack.Table
	cuts    *cuts

	// Owned by the agent's loop:
	committed bool                                       // all of the firewall is in the kernel, but for what it refuses
	refused   []dataplane.Object                         // these single objects
	settings  *desired.Settings                          // of the firewall, with the rule of cuts; nil until they are told
	wanted    map[netip.Prefix]desired.Route             // the desired routes to what is on this node, one to each destination
	retired   desired.Delta[netip.Prefix, desired.Encap] // to be removed when no route leads there any more
}

// Encapsulator is the driver of the IP-in-IP device, by whichever means the kernel has.
type Encapsulator interface {
	Update(devices desired.Delta[string, desired.IPIP], encaps desired.Delta[netip.Prefix, desired.Encap], decaps desired.Delta[netip.Addr, desired.Decap])
	Apply(ctx context.Context) error
	Whole()
	Resync()
	Watch(ctx context.Context, wake dataplane.Wake) error
	Entries() []dataplane.Entry
	// Counters is how many packets went which way, by reason; nil where the kernel's own device is at work, which has none.
	Counters() (map[string]uint64, error)
	Close() error
}

// OpenDrivers opens all drivers on the caller's network namespace. They take over ipip. in runs what starts programs or opens sockets
// later, in that namespace; nil: it is the process's.
func OpenDrivers(ipip Encapsulator, in func(func() error) error, log *slog.Logger) (*Drivers, error) {
	d := &Drivers{ipip: ipip, drifts: &drifts{log: log}, wanted: map[netip.Prefix]desired.Route{}}
	var err error
	if d.Links, err = link.New(); err != nil {
		return nil, err
	}
	if d.tunnels, err = tunnel.New(); err != nil {
		return nil, err
	}
	if d.rules, err = rules.New(rules.Config{In: in, Log: log}); err != nil {
		return nil, err
	}
	if d.routes, err = route.New(route.Config{Log: log}); err != nil {
		return nil, err
	}
	if d.table, err = conntrack.Open(); err != nil {
		return nil, err
	}
	if d.cuts, err = newCuts(context.Background(), d.table, log); err != nil {
		return nil, err
	}
	return d, nil
}

// Close releases the drivers; what they programmed stays.
func (d *Drivers) Close() error {
	return errors.Join(d.table.Close(), d.routes.Close(), d.rules.Close(), d.ipip.Close(), d.tunnels.Close(), d.Links.Close())
}

// Update takes changes of the desired state.
func (d *Drivers) Update(c desired.Changes) {
	d.Links.Update(c.Links, c.Sysctls)
	d.tunnels.Update(c.VXLANs, c.Neighbors, c.FDB)
	d.retired.Merge(c.Encaps)
	d.retired.Set = nil
	d.ipip.Update(c.IPIPs, desired.Delta[netip.Prefix, desired.Encap]{Set: c.Encaps.Set}, c.Decaps)
	d.cuts.note(c.Firewall)
	if c.Firewall.Settings != nil {
		settings := *c.Firewall.Settings
		settings.CutFlows = d.cuts.wants()
		c.Firewall.Settings, d.settings = &settings, &settings
	}
	d.rules.Update(c.Firewall)
	d.routes.Update(c.Routes)
	for k := range c.Routes.Removed {
		if have, ok := d.wanted[k.Dst]; ok && have.Key() == k {
			delete(d.wanted, k.Dst)
		}
	}
	for k, r := range c.Routes.Set {
		if r.Kind == desired.Blackhole || r.LinkScope {
			d.wanted[k.Dst] = r
		} else {
			delete(d.wanted, k.Dst)
		}
	}
}

// Apply makes the kernel agree. A driver that fails does not keep the others from their work: what is not programmed is
// closed. Packets are encapsulated for a destination as long as a route leads it there.
func (d *Drivers) Apply(ctx context.Context) error {
	d.rules.Guard(ctx)
	var errs []error
	for _, driver := range []struct {
		name  string
		apply func(context.Context) error
	}{
		{driverLink, d.Links.Apply},
		{driverTunnel, d.tunnels.Apply},
		{driverIPIP, d.ipip.Apply},
		{driverRules, d.applyRules},
		{driverConntrack, d.forget},
		{driverRoute, d.routes.Apply},
		{driverLink, d.Links.Grow},
	} {
		errs = append(errs, dataplane.Of(driver.name, driver.apply(ctx)))
	}
	err := errors.Join(errs...)
	if d.retired.Empty() {
		return err
	}
	d.ipip.Update(desired.Delta[string, desired.IPIP]{}, d.retired, desired.Delta[netip.Addr, desired.Decap]{})
	d.retired = desired.Delta[netip.Prefix, desired.Encap]{}
	return errors.Join(err, dataplane.Of(driverIPIP, d.ipip.Apply(ctx)))
}

// applyRules programs the firewall.
func (d *Drivers) applyRules(ctx context.Context) error {
	if d.settings != nil && d.settings.CutFlows != d.cuts.wants() {
		settings := *d.settings
		settings.CutFlows = d.cuts.wants()
		d.settings = &settings
		d.rules.Update(desired.FirewallDelta{Settings: d.settings})
	}
	err := d.rules.Apply(ctx)
	refused, only := refusals(err)
	d.refused = nil
	if d.committed = d.settings != nil && only; d.committed {
		d.refused = refused
		d.cuts.applied(d.settings.CutFlows)
	}
	return err
}

// forget ends the connections of those whose addresses others have by now, once the firewall lets none of them in.
func (d *Drivers) forget(ctx context.Context) error {
	if !d.committed {
		return nil
	}
	return d.cuts.forget(ctx, true)
}

// Forgotten waits until connections of addresses that left their workloads are deleted.
func (d *Drivers) Forgotten(ctx context.Context, addrs []netip.Addr) error {
	return d.cuts.forgotten(ctx, addrs)
}

// Whole tells that all but routes is known.
func (d *Drivers) Whole() {
	d.tunnels.Whole()
	d.ipip.Whole()
	d.rules.Whole()
}

// RoutesWhole tells that all routes are known.
func (d *Drivers) RoutesWhole() { d.routes.Whole() }

// Resync has everything read anew.
func (d *Drivers) Resync() {
	d.Links.Resync()
	d.tunnels.Resync()
	d.ipip.Resync()
	d.rules.Resync()
	d.routes.Resync()
}

// Holds tells what of an endpoint is not in the kernel as wanted.
func (d *Drivers) Holds(e state.Endpoint) error {
	var errs []error
	if !d.rules.InSync() && !d.refusedElsewhere(e.Interface) {
		errs = append(errs, errors.New("rules are not all programmed"))
	}
	if e.Leaving {
		return errors.Join(errs...)
	}
	if !d.Links.Programmed(e.Interface) {
		errs = append(errs, notSetUp(e.Interface, d.Links.Why(e.Interface)))
	}
	for _, a := range e.Addresses {
		r, wanted := d.wanted[netip.PrefixFrom(a, a.BitLen())]
		if !wanted || !d.routes.Programmed(r.Key()) {
			errs = append(errs, notProgrammed(a, d.routes.Why(r.Key())))
		}
	}
	return errors.Join(errs...)
}

func notSetUp(iface string, why error) error {
	if why == nil {
		return fmt.Errorf("interface %s is not there or not set up", iface)
	}
	return fmt.Errorf("interface %s is not set up: %w", iface, why)
}

func notProgrammed(a netip.Addr, why error) error {
	if why == nil {
		return fmt.Errorf("route %s is not programmed", a)
	}
	return fmt.Errorf("route %s is not programmed: %w", a, why)
}

// refusedElsewhere tells whether all that is not in sync of the rules is what the kernel refuses and does not concern a
// workload: then a pod can be wired beside it.
func (d *Drivers) refusedElsewhere(iface string) bool {
	return d.committed && len(d.refused) > 0 && !slices.ContainsFunc(d.refused, func(o dataplane.Object) bool { return mayConcern(o, iface) })
}

// Programmed tells whether the blackhole of a block, or the route to a workload's address, is in the kernel.
func (d *Drivers) Programmed(dst netip.Prefix) bool {
	r, wanted := d.wanted[dst]
	return wanted && d.routes.Programmed(r.Key())
}

// Checksums tells whether checksums in tunnels come out right; see tunnel.Driver.
func (d *Drivers) Checksums() error { return d.tunnels.Checksums() }

// Counters reads what the rules counted.
func (d *Drivers) Counters(ctx context.Context) ([]dataplane.Counter, error) {
	return d.rules.Counters(ctx)
}

// Entries lists everything, desired beside actual.
func (d *Drivers) Entries() []dataplane.Entry {
	out := append(d.Links.Entries(), d.tunnels.Entries()...)
	out = append(out, d.ipip.Entries()...)
	out = append(out, d.rules.Entries()...)
	return append(out, d.routes.Entries()...)
}

// ToldAs is what Update called a chain of rules that Entries names, "" if nothing.
func (d *Drivers) ToldAs(key string) string { return d.rules.ToldAs(key) }

// Watch calls wake whenever the kernel was changed by someone else, until ctx ends.
func (d *Drivers) Watch(ctx context.Context, wake func()) error {
	told := func(drifts ...dataplane.Drift) {
		wake()
		d.drifts.add(drifts)
	}
	defer d.drifts.flush()
	d.cuts.wakes(wake)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.cuts.run(ctx) })
	for _, watch := range []func(context.Context, dataplane.Wake) error{d.Links.Watch, d.tunnels.Watch, d.ipip.Watch, d.rules.Watch, d.routes.Watch} {
		group.Go(func() error { return watch(ctx, told) })
	}
	return group.Wait()
}
