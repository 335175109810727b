package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Config is what the driver needs to know at start.
type Config struct {
	Log *slog.Logger
}

// Driver keeps the firewall. Its methods may be called from several goroutines.
type Driver struct {
	log    *slog.Logger
	conn   *nlsock.Conn
	events *nlsock.Conn
	guards *guards
	counts *counters

	mu       sync.Mutex // guards the following, and conn
	families []*family
	model    *model.Model
	failures dataplane.Failures
	whole    bool
	closed   names // workloads with a closed direction
	spoofing names // workloads with additional sources
	gone     names // workloads and hosts that were removed, until they are out of the kernel
	guarded  bool  // guards look up the workloads' sources
}

type names = map[string]struct{}

// New opens the driver on the caller's network namespace. The process must be allowed to administer it.
func New(cfg Config) (*Driver, error) {
	conn, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables driver: %w", err)
	}
	events, err := nlsock.Dial(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("nftables driver: %w; is the kernel built with CONFIG_NF_TABLES?", err)
	}
	if err := events.Ignore(conn.Port()); err != nil {
		return nil, errors.Join(fmt.Errorf("nftables driver: %w", err), conn.Close(), events.Close())
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := unconnected()
	d.log, d.conn, d.events = cfg.Log, conn, events
	if err = d.guards.open(cfg.Log); err != nil {
		return nil, errors.Join(fmt.Errorf("nftables driver: %w", err), conn.Close(), events.Close())
	}
	if d.counts, err = openCounters(); err != nil {
		return nil, errors.Join(err, conn.Close(), events.Close(), d.guards.close())
	}
	return d, nil
}

// unconnected is a driver that knows of no kernel yet.
func unconnected() *Driver {
	d := &Driver{families: []*family{newFamily(nft.IP4), newFamily(nft.IP6)}, guards: newGuards(), closed: names{}, spoofing: names{}, gone: names{}}
	d.model = model.New(sets(d.families))
	return d
}

// Close releases the driver's sockets; the firewall stays. A running Watch returns.
func (d *Driver) Close() error {
	return errors.Join(d.conn.Close(), d.events.Close(), d.guards.close(), d.counts.conn.Close())
}

// tables are all tables that are ours.
func (d *Driver) tables() []*family { return append(slices.Clone(d.families), d.guards.family) }

// Writes counts the messages sent to change the kernel since New.
func (d *Driver) Writes() uint64 { return d.conn.Writes() }

// Whole says that Update was told everything: from now on, what else is in our tables is removed.
func (d *Driver) Whole() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whole, d.guards.dirty = true, true
}

// Resync makes the next Apply read our tables from the kernel.
func (d *Driver) Resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.tables() {
		f.stale = true
	}
	d.guards.listed, d.guards.lack = false, nil
}

// Update takes a change of the desired firewall.
func (d *Driver) Update(c desired.FirewallDelta) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.model.Update(c, sets(d.families))
	note(d.gone, c.Workloads)
	note(d.gone, c.Hosts)
	d.guards.note(c)
}

// note keeps up which names are gone.
func note[V any](gone names, c desired.Delta[string, V]) {
	for name := range c.Removed {
		gone[name] = struct{}{}
	}
	for name := range c.Set {
		delete(gone, name)
	}
}

// Desired is all that Update was told: what another driver must be told to take over.
func (d *Driver) Desired() desired.FirewallDelta {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.model.Desired(func(id string) (out []view.Member) {
		for _, f := range d.families {
			out = append(out, f.members[id].Members()...)
		}
		return out
	})
}

// Apply makes the kernel agree, in one transaction for each family. What failed stays due and is in the error, one
// ObjectError for each chain or set.
func (d *Driver) Apply(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	if err := d.guardSources(ctx); err != nil {
		errs = append(errs, err)
	}
	d.compile()
	d.failures = dataplane.Failures{}
	for _, f := range d.families {
		if err := d.applyFamily(ctx, f); err != nil {
			f.stale = true
			errs = append(errs, fmt.Errorf("nftables table %s: %w", f.Table, err))
		}
	}
	if len(errs) == 0 {
		clear(d.gone)
		d.model.Settled()
	}
	return errors.Join(append(errs, d.failures.Join())...)
}

func (d *Driver) applyFamily(ctx context.Context, f *family) error {
	if f.absent {
		return nil
	}
	failed, err := d.agree(ctx, f)
	if err != nil {
		return err
	}
	// Only of IPv6 there are kernels without any.
	if err := failed[tableObject]; f.Family == nft.IP6 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)) {
		f.absent = true
		d.log.Warn("the kernel has no nftables for IPv6; nothing of it is programmed", "error", err)
		return nil
	}
	for o, err := range failed {
		d.failures.Add(o.Kind, f.Family.String()+" "+o.Key, err)
	}
	return nil
}

// agree makes one table agree and returns what the kernel refused.
func (d *Driver) agree(ctx context.Context, f *family) (failed map[dataplane.Object]error, err error) {
	// A second round when the first met a kernel that was not as believed.
	for round := range 2 {
		if f.stale {
			if err := f.load(ctx, d.conn); err != nil {
				return nil, fmt.Errorf("read: %w", err)
			}
		}
		var surprised bool
		failed, surprised, err = d.commit(ctx, f)
		if err != nil || len(failed) == 0 {
			return nil, err
		}
		f.stale = true
		if !surprised || round == 1 {
			break
		}
	}
	return failed, nil
}

// Closed tells why a workload is closed, as far as the driver knows; "" if it is open in both directions.
func (d *Driver) Closed(iface string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.model.Closed(iface)
}

// ToldAs is what a chain of the kernel's was told as, "" if it is none of the model's.
func (d *Driver) ToldAs(kernel string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.model.Chains {
		for _, layer := range model.Layers() {
			if layerChain(layer, name) == kernel {
				return d.model.ToldAs(name)
			}
		}
	}
	return ""
}

// InSync tells whether the kernel agrees with everything Update was told.
func (d *Driver) InSync() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.model.Clean() || d.failures.Len() > 0 {
		return false
	}
	for _, f := range d.families {
		if !f.absent && (f.stale || !f.inSync()) {
			return false
		}
	}
	return d.guards.settled()
}

// Entries lists chains and sets, desired beside actual: chains as the comments of their rules, sets as numbers of members.
func (d *Driver) Entries() []dataplane.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []dataplane.Entry
	add := func(f *family, kind dataplane.Kind, name, want, have string) {
		o := dataplane.Object{Kind: kind, Key: f.Family.String() + " " + name}
		out = append(out, dataplane.Entry{Object: o, Desired: want, Actual: have, Err: d.failures.Of(kind, o.Key)})
	}
	for _, f := range d.tables() {
		for name, want := range f.chains.AllDesired() {
			have, _ := f.chains.Actual(name)
			add(f, dataplane.KindRule, name, want.String(), have.String())
		}
		for name, have := range f.chains.AllActual() {
			if _, wanted := f.chains.Desired(name); !wanted {
				add(f, dataplane.KindRule, name, "", have.String())
			}
		}
		for name := range f.sets.AllDesired() {
			want, have := counts(f.elements[name])
			add(f, dataplane.KindSet, name, want, have)
		}
	}
	slices.SortFunc(out, func(a, b dataplane.Entry) int { return strings.Compare(a.Key, b.Key) })
	return out
}
