package model

import (
	"maps"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/felix/desired"
)

// A policy that asks of labels what none did before moves all workloads that it is for from their lists of policies to others.
// Where those of a list move together, and nobody else is where they go, the chain of the list keeps its name and gets other rules:
// the kernel has one chain to edit, and not an entry for each workload. Where anybody stays behind, or is there already, the new
// list has a chain of its own: no chain that is edited judges, even for a moment, somebody whom its rules are not for.
//
// Names are not kept over a restart: each list then has its own again, by an edit of each entry in the transaction that adopts
// what is there.

// renames tells under which names chains are, where that is not what they were told under. A name belongs to one chain: where X is
// under the name of Y, Y is under another, should it come.
type renames struct{ names, told map[string]string }

func newRenames() renames { return renames{names: map[string]string{}, told: map[string]string{}} }

// name is the name of a chain that was told as told.
func (r renames) name(told string) string { return other(r.names, told) }

// toldAs is what the chain was told as whose name it is.
func (r renames) toldAs(name string) string { return other(r.told, name) }

func other(of map[string]string, name string) string {
	if o, there := of[name]; there {
		return o
	}
	return name
}

func (r renames) set(told, name string) {
	if told == name {
		delete(r.names, told)
		delete(r.told, name)
		return
	}
	r.names[told], r.told[name] = name, told
}

// exchange gives each of two chains the other's name.
func (r renames) exchange(a, b string) {
	ofA, ofB := r.name(a), r.name(b)
	r.set(a, ofB)
	r.set(b, ofA)
}

// ToldAs is what a chain of the model was told as.
func (m *Model) ToldAs(name string) string { return m.renames.toldAs(name) }

// follow has the chain of a list take the name of another that goes, if all workloads of that one, and no others, go to it.
func (m *Model) follow(c desired.FirewallDelta) {
	if len(c.Chains.Removed) == 0 || len(c.Workloads.Set) == 0 {
		return
	}
	under := map[string]int{} // how many workloads of the change are under a chain
	for _, w := range c.Workloads.Set {
		under[w.Ingress]++
		under[w.Egress]++
	}
	for old := range c.Chains.Removed {
		if next := m.successor(old, c); next != "" && under[next] == len(m.workloadsOf[m.renames.name(old)]) {
			m.renames.exchange(old, next)
		}
	}
}

// successor is the new chain to which all workloads go that are under one that goes; none if they part, or if anybody may still be
// under the old one to the kernel whom the model has elsewhere.
func (m *Model) successor(old string, c desired.FirewallDelta) (next string) {
	name, dir := m.renames.name(old), desired.DirectionOf(old)
	if _, left := m.left[name]; left || !ofList(old) || m.namedOtherwise(name) {
		return ""
	}
	for iface := range m.workloadsOf[name] {
		was, is := m.Workloads[iface], c.Workloads.Set[iface]
		to := is.Chain(dir)
		if was.Chain(dir) != name || to == "" || next != "" && to != next {
			return ""
		}
		next = to
	}
	if _, comes := c.Chains.Set[next]; !comes || !ofList(next) || desired.DirectionOf(next) != dir || m.used(m.renames.name(next)) {
		return ""
	}
	return next
}

// ofList tells whether a chain is that of a workloads' list.
func ofList(chain string) bool {
	return strings.HasPrefix(chain, desired.ListChain("", desired.Ingress)) || strings.HasPrefix(chain, desired.ListChain("", desired.Egress))
}

// namedOtherwise tells whether others than workloads name a chain.
func (m *Model) namedOtherwise(name string) bool {
	_, byHosts := m.hostChains[name]
	return byHosts || len(m.callers[name]) > 0
}

// used tells whether a name is that of a chain that is there, or that somebody names.
func (m *Model) used(name string) bool {
	_, there := m.Chains[name]
	return there || len(m.workloadsOf[name]) > 0 || m.namedOtherwise(name)
}

// named is a change with the names that chains have.
func (m *Model) named(c desired.FirewallDelta) desired.FirewallDelta {
	if len(m.renames.names) == 0 {
		return c
	}
	var chains desired.Delta[string, desired.Chain]
	for told := range c.Chains.Removed {
		chains.Remove(m.renames.name(told))
	}
	for told, chain := range c.Chains.Set {
		chains.Put(m.renames.name(told), renamed(chain, m.renames.name))
	}
	workloads := desired.Delta[string, desired.Workload]{Removed: c.Workloads.Removed}
	for iface, w := range c.Workloads.Set {
		w.Ingress, w.Egress = m.renames.name(w.Ingress), m.renames.name(w.Egress)
		workloads.Put(iface, w)
	}
	c.Chains, c.Workloads = chains, workloads
	return c
}

func renamed(c desired.Chain, name func(string) string) desired.Chain {
	c.Name = name(c.Name)
	if slices.ContainsFunc(c.Rules, func(r desired.Rule) bool { return name(r.Target) != r.Target }) {
		c.Rules = slices.Clone(c.Rules)
		for i, r := range c.Rules {
			c.Rules[i].Target = name(r.Target)
		}
	}
	return c
}

// forgetNames forgets what need not be known any more: of a chain that is not used, and whose own name nobody has.
func (m *Model) forgetNames() {
	for _, told := range slices.Collect(maps.Keys(m.renames.names)) {
		name := m.renames.name(told)
		if m.used(name) || m.used(told) {
			continue
		}
		owner := m.renames.toldAs(told)
		m.renames.set(told, told)
		m.renames.set(owner, name)
	}
}
