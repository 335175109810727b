// Package model keeps what a rule driver was told, with who uses what, and knows what must be compiled anew after a change:
// a chain when it changed, or when a set or chain that it names came or went. It is pure; it knows no kernel.
package model

import (
	"maps"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// Sets is where the members of sets are kept.
type Sets interface {
	// Make begins an empty set, in place of one of another type if there is one.
	Make(id string, kind view.SetType)
	Replace(id string, members []view.Member)
	Change(id string, d desired.SetDelta)
	Drop(id string)
}

// Model is the desired state of a firewall. It is not safe for concurrent use.
type Model struct {
	Settings  desired.Settings
	Sets      map[string]view.SetType
	Chains    map[string]desired.Chain // by the names that they have: see ToldAs
	Workloads map[string]desired.Workload
	Hosts     map[string]desired.Host
	Dirty     Dirty

	usersOfSet  map[string]names       // chains by set id
	callers     map[string]names       // chains by the chain they jump to
	workloadsOf map[string]names       // workloads by the chain they name
	hostChains  names                  // chains that hosts name
	inLayer     map[desired.Layers]int // chains by layer
	renames     renames
	left        names // chains that workloads left, and may be under in the kernel
}

// Dirty is what must be compiled anew.
type Dirty struct {
	Chains names
	// Workloads are those that came, went or changed, or for which it changed whether the chains are there that they name.
	Workloads names
	// Once is what exists once: settings, hosts or speaking workloads changed, or whether the chains are there that hosts name.
	Once bool
}

type names = map[string]struct{}

// Fixed are the sets that rules of felix's own name: they exist even while they are empty.
func Fixed() []string {
	return []string{desired.SetAllHosts, desired.SetVXLANHosts, desired.SetPools, desired.SetMasqPools, desired.SetServices}
}

// New returns a model that knows of nothing but the fixed sets, empty, and of interfaces that begin with cali.
func New(sets Sets) *Model {
	m := &Model{
		Settings: desired.Settings{WorkloadPrefixes: []string{"cali"}},
		Sets:     map[string]view.SetType{}, Chains: map[string]desired.Chain{}, Workloads: map[string]desired.Workload{},
		Hosts: map[string]desired.Host{}, Dirty: Dirty{Chains: names{}, Workloads: names{}, Once: true},
		usersOfSet: map[string]names{}, callers: map[string]names{}, workloadsOf: map[string]names{}, hostChains: names{},
		inLayer: map[desired.Layers]int{}, renames: newRenames(), left: names{},
	}
	for _, id := range Fixed() {
		m.setMembers(sets, id, desired.Set{Type: view.SetNet})
	}
	return m
}

// Desired is all that the model knows, but for the members of sets, which are kept elsewhere: those are asked for.
func (m *Model) Desired(members func(id string) []view.Member) desired.FirewallDelta {
	settings := m.Settings
	c := desired.FirewallDelta{Settings: &settings}
	for id, kind := range m.Sets {
		c.Sets.Put(id, desired.Set{Type: kind, Members: members(id)})
	}
	for name, chain := range m.Chains {
		c.Chains.Put(m.ToldAs(name), renamed(chain, m.ToldAs))
	}
	for iface, w := range m.Workloads {
		w.Ingress, w.Egress = m.ToldAs(w.Ingress), m.ToldAs(w.Egress)
		c.Workloads.Put(iface, w)
	}
	c.Hosts.Set = maps.Clone(m.Hosts)
	return c
}

// Of is what a family's rules follow from: all of the model, or, where no workload has the family, neither chains nor workloads. It
// is for reading.
func (m *Model) Of(v6 bool) *Model {
	if !v6 || !m.Settings.NoIPv6 {
		return m
	}
	return &Model{Settings: m.Settings, Sets: m.Sets, Hosts: m.Hosts, Dirty: m.Dirty}
}

// Update takes a change.
func (m *Model) Update(c desired.FirewallDelta, sets Sets) {
	m.follow(c)
	c = m.named(c)
	if c.Settings != nil && !m.Settings.Equal(*c.Settings) {
		if m.Settings.RejectDenied != c.Settings.RejectDenied || m.Settings.LogLimit != c.Settings.LogLimit || m.Settings.NoIPv6 != c.Settings.NoIPv6 {
			for name := range m.Chains {
				m.Dirty.Chains[name] = struct{}{}
			}
		}
		if m.Settings.NoIPv6 != c.Settings.NoIPv6 {
			m.TouchWorkloads()
		}
		m.Settings, m.Dirty.Once = *c.Settings, true
	}
	for id := range c.Sets.Removed {
		m.removeSet(sets, id)
	}
	for id, s := range c.Sets.Set {
		m.setMembers(sets, id, s)
	}
	for id, d := range c.Members {
		if _, known := m.Sets[id]; known {
			sets.Change(id, d)
		}
	}
	for name := range c.Chains.Removed {
		m.removeChain(name)
	}
	for name, chain := range c.Chains.Set {
		m.setChain(name, chain)
	}
	m.setWorkloads(c.Workloads)
	m.setHosts(c.Hosts)
}

func (m *Model) setWorkloads(c desired.Delta[string, desired.Workload]) {
	for name := range c.Removed {
		if w, known := m.Workloads[name]; known {
			m.leave(name, w, desired.Workload{})
			delete(m.Workloads, name)
			m.Dirty.Once = m.Dirty.Once || w.SpeakerPort != 0
		}
		m.Dirty.Workloads[name] = struct{}{}
	}
	for name, w := range c.Set {
		old, known := m.Workloads[name]
		m.Workloads[name] = w // the reason for being closed may differ
		if known && old.Equal(w) {
			continue
		}
		m.leave(name, old, w)
		link(m.workloadsOf, w.Ingress, name)
		link(m.workloadsOf, w.Egress, name)
		m.Dirty.Workloads[name] = struct{}{}
		m.Dirty.Once = m.Dirty.Once || old.SpeakerPort != w.SpeakerPort
	}
}

// leave takes a workload from the chains that it names.
func (m *Model) leave(name string, w, next desired.Workload) {
	for _, d := range []desired.Direction{desired.Ingress, desired.Egress} {
		unlink(m.workloadsOf, w.Chain(d), name)
		if w.Chain(d) != next.Chain(d) {
			m.left[w.Chain(d)] = struct{}{}
		}
	}
}

// Settled says that the kernel has all of the model, or drops where it refuses it.
func (m *Model) Settled() {
	clear(m.left)
	m.forgetNames()
}

func (m *Model) setHosts(c desired.Delta[string, desired.Host]) {
	if c.Empty() {
		return
	}
	for name := range c.Removed {
		delete(m.Hosts, name)
		m.Dirty.Once = true
	}
	for name, h := range c.Set {
		old, known := m.Hosts[name]
		m.Dirty.Once = m.Dirty.Once || !known || !old.Equal(h)
		m.Hosts[name] = h
	}
	m.hostChains = names{}
	for _, h := range m.Hosts {
		for _, s := range Stations() {
			m.hostChains[h.Of(s.Pass).Of(s.Dir)] = struct{}{}
			m.hostChains[s.Counts(h)] = struct{}{}
			m.hostChains[s.Failsafe()] = struct{}{}
		}
	}
}

// Speaking are the interfaces of workloads that speak BGP with the node, in order.
func (m *Model) Speaking() (out []string) {
	for name, w := range m.Workloads {
		if w.SpeakerPort != 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Compiled says that all that was dirty has been compiled.
func (m *Model) Compiled() { m.Dirty = Dirty{Chains: names{}, Workloads: names{}} }

// Clean tells whether nothing must be compiled.
func (m *Model) Clean() bool {
	return len(m.Dirty.Chains) == 0 && len(m.Dirty.Workloads) == 0 && !m.Dirty.Once
}

// TouchWorkloads has all workloads compiled anew, and what exists once.
func (m *Model) TouchWorkloads() {
	m.Dirty.Once = true
	for name := range m.Workloads {
		m.Dirty.Workloads[name] = struct{}{}
	}
}

// Touch has the chains that name a set compiled anew.
func (m *Model) Touch(set string) {
	for name := range m.usersOfSet[set] {
		m.Dirty.Chains[name] = struct{}{}
	}
}

// Has tells whether a chain is there, in a layer.
func (m *Model) Has(chain string, in desired.Layers) bool {
	c, ok := m.Chains[chain]
	return ok && c.In.Has(in)
}

// Uses tells whether there is any chain in a layer.
func (m *Model) Uses(layer desired.Layers) bool { return m.inLayer[layer] > 0 }

// Layers are all there are.
func Layers() []desired.Layers { return []desired.Layers{desired.Filter, desired.Mangle, desired.Raw} }

// Closed tells why a workload is closed, as far as the model knows; "" if it is open in both directions.
func (m *Model) Closed(iface string) string {
	w, known := m.Workloads[iface]
	if !known {
		return "the interface belongs to no known endpoint"
	}
	for _, name := range []string{w.Egress, w.Ingress} {
		switch {
		case name == "" && w.ClosedBecause != "":
			return w.ClosedBecause
		case name == "":
			return "its policy is not known"
		case !m.Has(name, desired.Filter):
			return "its policy " + m.ToldAs(name) + " is not programmed"
		}
	}
	return ""
}

func (m *Model) setMembers(sets Sets, id string, s desired.Set) {
	if old, known := m.Sets[id]; !known || old != s.Type {
		m.Sets[id] = s.Type
		sets.Make(id, s.Type)
		m.Touch(id)
	}
	sets.Replace(id, s.Members)
}

func (m *Model) removeSet(sets Sets, id string) {
	if _, known := m.Sets[id]; !known {
		return
	}
	if slices.Contains(Fixed(), id) {
		sets.Replace(id, nil)
		return
	}
	delete(m.Sets, id)
	sets.Drop(id)
	m.Touch(id)
}

func (m *Model) setChain(name string, c desired.Chain) {
	old, known := m.Chains[name]
	if known && old.Equal(c) {
		return
	}
	m.unlink(name, old)
	if known {
		m.count(old, -1)
	}
	m.count(c, 1)
	m.Chains[name] = c
	for _, r := range c.Rules {
		for _, id := range r.Match.Sets() {
			link(m.usersOfSet, id, name)
		}
		if r.Do == desired.Jump {
			link(m.callers, r.Target, name)
		}
	}
	m.Dirty.Chains[name] = struct{}{}
	if !known || old.In != c.In {
		m.touchCallers(name)
	}
}

// count notes in which layers there are chains; that of the first and the last of a layer matters to what exists once.
func (m *Model) count(c desired.Chain, in int) {
	for _, l := range Layers() {
		if !c.In.Has(l) {
			continue
		}
		before := m.Uses(l)
		m.inLayer[l] += in
		m.Dirty.Once = m.Dirty.Once || before != m.Uses(l)
	}
}

func (m *Model) removeChain(name string) {
	old, known := m.Chains[name]
	if !known {
		return
	}
	m.unlink(name, old)
	m.count(old, -1)
	delete(m.Chains, name)
	m.Dirty.Chains[name] = struct{}{}
	m.touchCallers(name)
}

// touchCallers is for a chain that came or went.
func (m *Model) touchCallers(name string) {
	for caller := range m.callers[name] {
		m.Dirty.Chains[caller] = struct{}{}
	}
	for w := range m.workloadsOf[name] {
		m.Dirty.Workloads[w] = struct{}{}
	}
	if _, named := m.hostChains[name]; named {
		m.Dirty.Once = true
	}
}

func (m *Model) unlink(name string, c desired.Chain) {
	for _, r := range c.Rules {
		for _, id := range r.Match.Sets() {
			unlink(m.usersOfSet, id, name)
		}
		if r.Do == desired.Jump {
			unlink(m.callers, r.Target, name)
		}
	}
}

func link(index map[string]names, from, to string) {
	if index[from] == nil {
		index[from] = names{}
	}
	index[from][to] = struct{}{}
}

func unlink(index map[string]names, from, to string) {
	delete(index[from], to)
	if len(index[from]) == 0 {
		delete(index, from)
	}
}
