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
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
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

	mu       sync.Mutex // guards the following, and conn
	families []*family
	model    model
	failures dataplane.Failures
	whole    bool
}

// model is the desired state, and what of it must be compiled anew.
type model struct {
	settings  desired.Settings
	setTypes  map[string]view.SetType
	chains    map[string]desired.Chain
	workloads map[string]desired.Workload
	closed    map[string]bool // workloads with a closed direction
	spoofing  map[string]bool // workloads with additional sources

	usersOfSet   map[string]map[string]bool // chains by set id
	callers      map[string]map[string]bool // chains by the chain they jump to
	workloadsOf  map[string]map[string]bool // workloads by chain
	dirtyBases   bool
	dirtyChains  map[string]bool
	dirtyWorkers map[string]bool // workloads
	gone         map[string]bool // workloads that were removed, until they are out of the kernel
}

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
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Driver{
		log: cfg.Log, conn: conn, events: events,
		families: []*family{newFamily(nft.IP4), newFamily(nft.IP6)},
		model: model{
			settings: desired.Settings{WorkloadPrefixes: []string{"cali"}},
			setTypes: map[string]view.SetType{}, chains: map[string]desired.Chain{}, workloads: map[string]desired.Workload{},
			closed: map[string]bool{}, spoofing: map[string]bool{},
			usersOfSet: map[string]map[string]bool{}, callers: map[string]map[string]bool{}, workloadsOf: map[string]map[string]bool{},
			dirtyBases: true, dirtyChains: map[string]bool{}, dirtyWorkers: map[string]bool{}, gone: map[string]bool{},
		},
	}
	// The sets that rules of ours name exist even while they are empty.
	for _, id := range []string{desired.SetAllHosts, desired.SetVXLANHosts, desired.SetPools, desired.SetMasqPools} {
		d.setMembers(id, desired.Set{Type: view.SetNet})
	}
	return d, nil
}

// Close releases the driver's sockets; the firewall stays. A running Watch returns.
func (d *Driver) Close() error { return errors.Join(d.conn.Close(), d.events.Close()) }

// Writes counts the messages sent to change the kernel since New.
func (d *Driver) Writes() uint64 { return d.conn.Writes() }

// Whole says that Update was told everything: from now on, what else is in our tables is removed.
func (d *Driver) Whole() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whole = true
}

// Resync makes the next Apply read our tables from the kernel.
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
	m := &d.model
	if c.Settings != nil && !m.settings.Equal(*c.Settings) {
		if m.settings.RejectDenied != c.Settings.RejectDenied {
			for name := range m.chains {
				m.dirtyChains[name] = true
			}
		}
		m.settings = *c.Settings
		m.dirtyBases = true
	}
	for id := range c.Sets.Removed {
		d.removeSet(id)
	}
	for id, s := range c.Sets.Set {
		d.setMembers(id, s)
	}
	for id, delta := range c.Members {
		for _, f := range d.families {
			if s := f.members[id]; s != nil {
				for _, member := range delta.Removed {
					s.Remove(member)
				}
				for _, member := range delta.Added {
					s.Add(member)
				}
			}
		}
	}
	for name := range c.Chains.Removed {
		m.removeChain(name)
	}
	for name, chain := range c.Chains.Set {
		m.setChain(name, chain)
	}
	for name := range c.Workloads.Removed {
		m.removeWorkload(name)
	}
	for name, w := range c.Workloads.Set {
		m.setWorkload(name, w)
	}
}

// setMembers replaces a whole set.
func (d *Driver) setMembers(id string, s desired.Set) {
	if old, known := d.model.setTypes[id]; !known || old != s.Type {
		d.removeSet(id)
		d.model.setTypes[id] = s.Type
		d.model.markUsers(id)
		for _, f := range d.families {
			e := f.wantSet(kernelSet(f.Family, id), specOf(f.Family, s.Type))
			f.members[id] = ipset.New(s.Type, f.version(), func(k ipset.Element, in bool) {
				if in {
					e.SetDesired(string(k), nft.Verdict{})
					return
				}
				e.DeleteDesired(string(k))
			})
		}
	}
	for _, f := range d.families {
		f.members[id].Replace(s.Members)
	}
}

func specOf(f nft.Family, t view.SetType) nft.SetSpec {
	if t == view.SetIPPort {
		return nft.SetSpec{Key: f.AddressProtoPort()}
	}
	return nft.SetSpec{Key: f.Address(), Interval: true}
}

func (d *Driver) removeSet(id string) {
	if _, known := d.model.setTypes[id]; !known {
		return
	}
	switch id {
	case desired.SetAllHosts, desired.SetVXLANHosts, desired.SetPools, desired.SetMasqPools:
		for _, f := range d.families { // it stays, empty
			f.members[id].Replace(nil)
		}
		return
	}
	delete(d.model.setTypes, id)
	d.model.markUsers(id)
	for _, f := range d.families {
		delete(f.members, id)
		f.dropSet(kernelSet(f.Family, id))
	}
}

func (m *model) markUsers(set string) {
	for name := range m.usersOfSet[set] {
		m.dirtyChains[name] = true
	}
}

func (m *model) setChain(name string, c desired.Chain) {
	old, known := m.chains[name]
	if known && old.Equal(c) {
		return
	}
	m.unlink(name, old)
	m.chains[name] = c
	for _, r := range c.Rules {
		for _, id := range r.Match.Sets() {
			link(m.usersOfSet, id, name)
		}
		if r.Do == desired.Jump {
			link(m.callers, r.Target, name)
		}
	}
	m.dirtyChains[name] = true
	if !known {
		m.markCallers(name)
	}
}

func (m *model) removeChain(name string) {
	old, known := m.chains[name]
	if !known {
		return
	}
	m.unlink(name, old)
	delete(m.chains, name)
	m.dirtyChains[name] = true
	m.markCallers(name)
}

// markCallers is for a chain that appeared or disappeared.
func (m *model) markCallers(name string) {
	for caller := range m.callers[name] {
		m.dirtyChains[caller] = true
	}
	for w := range m.workloadsOf[name] {
		m.dirtyWorkers[w] = true
	}
}

func (m *model) unlink(name string, c desired.Chain) {
	for _, r := range c.Rules {
		for _, id := range r.Match.Sets() {
			unlink(m.usersOfSet, id, name)
		}
		if r.Do == desired.Jump {
			unlink(m.callers, r.Target, name)
		}
	}
}

func (m *model) setWorkload(name string, w desired.Workload) {
	if old, known := m.workloads[name]; known {
		if old.Equal(w) {
			m.workloads[name] = w // the reason for being closed may differ
			return
		}
		unlink(m.workloadsOf, old.Ingress, name)
		unlink(m.workloadsOf, old.Egress, name)
	}
	m.workloads[name] = w
	link(m.workloadsOf, w.Ingress, name)
	link(m.workloadsOf, w.Egress, name)
	m.dirtyWorkers[name] = true
	delete(m.gone, name)
}

func (m *model) removeWorkload(name string) {
	if old, known := m.workloads[name]; known {
		unlink(m.workloadsOf, old.Ingress, name)
		unlink(m.workloadsOf, old.Egress, name)
		delete(m.workloads, name)
	}
	m.dirtyWorkers[name] = true
	m.gone[name] = true
}

func link(index map[string]map[string]bool, from, to string) {
	if index[from] == nil {
		index[from] = map[string]bool{}
	}
	index[from][to] = true
}

func unlink(index map[string]map[string]bool, from, to string) {
	delete(index[from], to)
	if len(index[from]) == 0 {
		delete(index, from)
	}
}

// Apply makes the kernel agree, in one transaction for each family. What failed stays due and is in the error, one
// ObjectError for each chain or set.
func (d *Driver) Apply(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.compile()
	d.failures = dataplane.Failures{}
	var errs []error
	for _, f := range d.families {
		if err := d.applyFamily(ctx, f); err != nil {
			f.stale = true
			errs = append(errs, fmt.Errorf("nftables table %s: %w", f.Table, err))
		}
	}
	if len(errs) == 0 {
		clear(d.model.gone)
	}
	return errors.Join(append(errs, d.failures.Join())...)
}

func (d *Driver) applyFamily(ctx context.Context, f *family) error {
	if f.absent {
		return nil
	}
	// A second round when the first met a kernel that was not as believed.
	for round := range 2 {
		if f.stale {
			if err := f.load(ctx, d.conn); err != nil {
				return fmt.Errorf("read: %w", err)
			}
		}
		failed, surprised, err := d.commit(ctx, f)
		if err != nil {
			return err
		}
		if len(failed) == 0 {
			return nil
		}
		if err := failed[tableObject]; errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			f.absent = true
			d.log.Warn("the kernel has no nftables for this family; nothing of it is programmed", "family", f.Family.String(), "error", err)
			return nil
		}
		f.stale = true
		if !surprised || round == 1 {
			for o, err := range failed {
				d.failures.Add(o.Kind, f.Family.String()+" "+o.Key, err)
			}
			return nil
		}
	}
	return nil
}

// Closed tells why a workload is closed, as far as the driver knows; "" if it is open in both directions.
func (d *Driver) Closed(iface string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, known := d.model.workloads[iface]
	if !known {
		return "the interface belongs to no known endpoint"
	}
	for _, name := range []string{w.Egress, w.Ingress} {
		switch _, there := d.model.chains[name]; {
		case name == "" && w.ClosedBecause != "":
			return w.ClosedBecause
		case name == "":
			return "its policy is not known"
		case !there:
			return "its policy " + name + " is not programmed"
		}
	}
	return ""
}

// InSync tells whether the kernel agrees with everything Update was told.
func (d *Driver) InSync() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &d.model
	if m.dirtyBases || len(m.dirtyChains) > 0 || len(m.dirtyWorkers) > 0 || d.failures.Len() > 0 {
		return false
	}
	for _, f := range d.families {
		if !f.absent && (f.stale || !f.inSync()) {
			return false
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
		o := dataplane.Object{Kind: kind, Key: f.Family.String() + " " + name}
		out = append(out, dataplane.Entry{Object: o, Desired: want, Actual: have, Err: d.failures.Of(kind, o.Key)})
	}
	for _, f := range d.families {
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
