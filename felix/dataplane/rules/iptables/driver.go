package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Config is what the driver needs to know at start.
type Config struct {
	Variant  Variant
	AtEnd    bool     // our rules come behind others' in the kernel's chains (ChainInsertMode Append)
	Lock     LockWait // how to wait for the lock of xtables
	SetLimit int      // most entries of a set; 0: desired.DefaultSetLimit
	// In runs what starts programs or opens sockets, in the network namespace that the driver is for; nil: where the process
	// is.
	In  func(func() error) error
	Log *slog.Logger
}

// Driver keeps the firewall. Its methods may be called from several goroutines.
type Driver struct {
	cfg    Config
	log    *slog.Logger
	kernel *ipset.Kernel
	eyes   eyes

	mu       sync.Mutex // guards the following, and kernel
	families []*family
	model    *model.Model
	failures dataplane.Failures
	whole    bool
	closed   bool

	runs atomic.Uint64 // of iptables-restore
	// atOnce is how many families are written at a time. The kernel keeps back the end of a program that has replaced rules of
	// nftables until nobody can be in them any more, which takes longer than all else; the others have one lock.
	atOnce int
}

// family is what we have in the tables and sets of one family, desired beside actual.
type family struct {
	v6      bool
	program program
	stale   bool // actual must be read anew
	read    bool // it was read at least once
	adopted bool // what was read first had rules of ours
	tables  []*kernelTable
	touched map[string]map[string]struct{} // chains whose rules others changed, by table
	sets    *sets
}

// String is the family as Entries and messages name it.
func (f *family) String() string {
	if f.v6 {
		return "ip6"
	}
	return "ip"
}

// New finds the programs of the variant and opens the driver. The process must be allowed to administer the network
// namespace.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SetLimit <= 0 {
		cfg.SetLimit = desired.DefaultSetLimit
	}
	if cfg.In == nil {
		cfg.In = func(f func() error) error { return f() }
	}
	d := &Driver{cfg: cfg, log: cfg.Log}
	if err := cfg.In(d.open); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("iptables driver (%s): %w", cfg.Variant, err)
	}
	d.model = model.New(d.sets())
	return d, nil
}

func newFamily(v6 bool, p program, limit int, kernel *ipset.Kernel) *family {
	return &family{
		v6: v6, program: p, stale: true, touched: map[string]map[string]struct{}{},
		tables: []*kernelTable{newTable(tableRaw), newTable(tableMangle), newTable(tableFilter), newTable(tableNAT)},
		sets:   newSets(v6, limit, kernel),
	}
}

// sets are the sets of all families.
func (d *Driver) sets() (out both) {
	for _, f := range d.families {
		out = append(out, f.sets)
	}
	return out
}

// open opens all that belongs to a network namespace.
func (d *Driver) open() (err error) {
	if d.kernel, err = ipset.Open(); err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		p, err := findProgram(v6, d.cfg.Variant, d.cfg.In)
		if err != nil {
			return err
		}
		p.lock = d.cfg.Lock
		d.families = append(d.families, newFamily(v6, p, d.cfg.SetLimit, d.kernel))
	}
	if d.cfg.Variant == NFT {
		d.atOnce = len(d.families)
		d.eyes, err = openEvents()
	} else {
		d.atOnce = 1
		d.eyes, err = openHeaders()
	}
	return err
}

// Close releases what the driver opened; the firewall stays. A running Watch returns.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, f := range d.families {
		f.program.rest()
	}
	var errs []error
	if d.kernel != nil {
		errs = append(errs, d.kernel.Close())
	}
	if d.eyes != nil {
		errs = append(errs, d.eyes.close())
	}
	return errors.Join(errs...)
}

// Variant is which iptables the driver writes with.
func (d *Driver) Variant() Variant { return d.cfg.Variant }

// Writes counts the transactions and messages that changed the kernel since New.
func (d *Driver) Writes() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.runs.Load() + d.kernel.Writes()
}

// Whole says that Update was told everything: from now on, what else of ours is there is removed. Before, rules that an
// earlier felix left stay as they are, since what they know cannot be told apart.
func (d *Driver) Whole() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whole = true
}

// Resync makes the next Apply read our tables and sets from the kernel.
func (d *Driver) Resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.families {
		f.stale = true
	}
}

// Update takes a change of the desired firewall.
func (d *Driver) Update(c desired.FirewallDelta) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.model.Update(c, d.sets())
}

// Desired is all that Update was told: what another driver must be told to take over.
func (d *Driver) Desired() desired.FirewallDelta {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.model.Desired(func(id string) (out []view.Member) {
		for _, f := range d.families {
			out = append(out, f.sets.members[id].Members()...)
		}
		return out
	})
}

// Apply makes the kernel agree: sets that rules will name, then rules, one transaction for each table, then sets that no
// rule names any more. What failed stays due and is in the error, one ObjectError for each chain or set.
func (d *Driver) Apply(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures = dataplane.Failures{}
	d.compile()
	var errs []error
	due := d.families
	for round := range 2 { // a second one where the first met a kernel that was not as believed
		var again []*family
		for _, a := range d.attempt(ctx, due) {
			if a.err == nil && a.failed.Len() == 0 {
				continue
			}
			a.stale = true
			switch {
			case a.err != nil:
				errs = append(errs, fmt.Errorf("iptables %s: %w", a.family, a.err))
			case round == 0:
				again = append(again, a.family)
			default:
				d.failures.Merge(a.String()+" ", a.failed)
			}
		}
		due = again
	}
	if len(errs) == 0 && d.whole { // before, what is adopted stays as it is
		d.model.Settled()
	}
	return errors.Join(append(errs, d.failures.Join())...)
}

// compile brings what is desired up to date with the model.
func (d *Driver) compile() {
	if d.model.Clean() {
		return
	}
	for _, f := range d.families {
		f.compile(d.model.Of(f.v6))
	}
	d.model.Compiled()
}

func (f *family) compile(m *model.Model) {
	c := compiler{
		v6: f.v6, reject: m.Settings.RejectDenied, logs: m.Settings.LogLimit, hasChain: m.Has,
		setType: func(id string) (view.SetType, bool) {
			t, ok := m.Sets[id]
			return t, ok && f.sets.usable(id)
		},
	}
	for name := range m.Dirty.Chains {
		kernel := kernelChain(name)
		want, wanted := m.Chains[name]
		c.owned = map[string][]view.Member{}
		for layer, table := range tableOfLayer {
			chains := f.table(table).chains
			if !wanted || !want.In.Has(layer) {
				chains.DeleteDesired(kernel)
				continue
			}
			c.layer = layer
			compiled := newChain(kernel, c.chain(want))
			compiled.idle = !want.Decides()
			chains.SetDesired(kernel, compiled)
		}
		f.sets.own(kernel, c.owned)
	}
	if !m.Dirty.Once && len(m.Dirty.Workloads) == 0 {
		return
	}
	b := bases{compiler: c, model: m, randomFully: f.program.randomFully}
	for name, t := range b.tables() {
		f.table(name).want(t)
	}
}

func (f *family) table(name string) *kernelTable {
	for _, t := range f.tables {
		if t.name == name {
			return t
		}
	}
	panic("iptables: no table " + name)
}

// attempt is what came of writing a family.
type attempt struct {
	*family
	failed dataplane.Failures
	err    error
}

// attempt writes what is due in some families.
func (d *Driver) attempt(ctx context.Context, families []*family) (out []*attempt) {
	for _, f := range families {
		a := &attempt{family: f}
		if f.stale {
			if err := d.load(ctx, f); err != nil {
				a.err = fmt.Errorf("read: %w", err)
			}
		}
		if a.err != nil || !f.adopted || d.whole {
			out = append(out, a)
		}
	}
	// What could not be filled changes rules of both families, so all sets come before all rules.
	for _, a := range out {
		if a.err == nil {
			d.fill(ctx, a)
		}
	}
	var g errgroup.Group
	g.SetLimit(d.atOnce)
	for _, a := range out {
		if a.err == nil {
			g.Go(func() error {
				a.err = d.writeTables(ctx, a)
				return nil
			})
		}
	}
	_ = g.Wait() // each has its own
	for _, a := range out {
		if a.err == nil && d.whole {
			a.sweep(ctx, &a.failed)
		}
	}
	return out
}

// load reads what is ours.
func (d *Driver) load(ctx context.Context, f *family) error {
	if err := d.eyes.forget(f); err != nil { // before reading: what changes meanwhile is seen then
		return err
	}
	got, err := f.program.read(ctx)
	if err != nil {
		return err
	}
	found := false
	for _, t := range f.tables {
		s := got[t.name]
		t.take(s, f.touched[t.name], d.cfg.AtEnd)
		found = found || len(s.chains) > 0
	}
	if !f.read {
		f.read, f.adopted = true, found
	}
	clear(f.touched)
	if err := f.sets.load(ctx, true); err != nil {
		return err
	}
	f.stale = false
	return nil
}

// fill brings the sets up to date that rules will name.
func (d *Driver) fill(ctx context.Context, a *attempt) {
	// Rules may name a set now that they could not, or may no longer; and what they name instead must be filled too.
	for changed := a.sets.fill(ctx, &a.failed); len(changed) > 0; changed = a.sets.fill(ctx, &a.failed) {
		for _, id := range changed {
			d.model.Touch(id)
		}
		d.compile()
	}
}

func (d *Driver) writeTables(ctx context.Context, a *attempt) error {
	for _, t := range a.tables {
		pieces := [][]*unit{t.plan(d.whole, d.cfg.AtEnd)}
		if d.cfg.Variant == NFT {
			pieces = t.pieces(pieces[0])
		}
		for _, units := range pieces {
			if err := d.write(ctx, a.family, t, units, &a.failed); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweep removes the sets that nothing wants. The kernel takes them for named until it is done with the rules that were replaced,
// which it lets the end of the program wait for that has replaced them.
func (f *family) sweep(ctx context.Context, failed *dataplane.Failures) {
	f.sets.sweep(ctx, failed)
	if len(f.sets.busy) > 0 && f.program.feed != nil {
		f.program.rest()
		f.sets.sweep(ctx, failed)
	}
}

// Remove takes everything of ours out of the kernel: first the jumps with the chains, then the sets, unless keepSets says
// that another driver uses them. After it the driver wants nothing.
func (d *Driver) Remove(ctx context.Context, keepSets bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures = dataplane.Failures{}
	for _, f := range d.families {
		f.stale, f.adopted = true, false
		f.sets = newSets(f.v6, d.cfg.SetLimit, d.kernel)
		for _, t := range f.tables {
			t.chains.ReplaceDesired(nil)
			t.want(table{})
		}
	}
	d.model = model.New(d.sets())
	d.model.Compiled()
	var errs []error
	for _, f := range d.families {
		f.sets.headers.ReplaceDesired(nil)
		err := d.load(ctx, f)
		for _, t := range f.tables {
			if err == nil {
				err = d.write(ctx, f, t, t.plan(true, d.cfg.AtEnd), &d.failures)
			}
		}
		if err == nil && !keepSets {
			f.sweep(ctx, &d.failures)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, d.failures.Join())...)
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
		if kernelChain(name) == kernel {
			return d.model.ToldAs(name)
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
		if f.stale || !f.sets.inSync() {
			return false
		}
		for _, t := range f.tables {
			if !t.inSync() {
				return false
			}
		}
	}
	return true
}

// Entries lists chains and sets, desired beside actual: chains as the comments of their rules, sets as numbers of members.
func (d *Driver) Entries() []dataplane.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []dataplane.Entry
	add := func(f *family, kind dataplane.Kind, name, want, have string) {
		o := dataplane.Object{Kind: kind, Key: f.String() + " " + name}
		out = append(out, dataplane.Entry{Object: o, Desired: want, Actual: have, Err: d.failures.Of(kind, o.Key)})
	}
	for _, f := range d.families {
		for _, t := range f.tables {
			for name, want := range t.chains.AllDesired() {
				have, _ := t.chains.Actual(name)
				add(f, dataplane.KindRule, t.name+" "+name, want.String(), have.String())
			}
			for name, have := range t.chains.AllActual() {
				if _, wanted := t.chains.Desired(name); !wanted {
					add(f, dataplane.KindRule, t.name+" "+name, "", have.String())
				}
			}
		}
		for name := range f.sets.headers.AllDesired() {
			e := f.sets.entries[name]
			add(f, dataplane.KindSet, name, fmt.Sprintf("%d entries", count(e.AllDesired())), fmt.Sprintf("%d entries", count(e.AllActual())))
		}
	}
	slices.SortFunc(out, func(a, b dataplane.Entry) int { return strings.Compare(a.Key, b.Key) })
	return out
}
