package model

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/thorough"
)

// rulesOf is a kernel, as far as it has chains and entries of workloads.
type rulesOf struct {
	chains  map[string]string    // what they say
	entries map[string][2]string // where workloads' packets go
}

// judges tells what a workload's packets come to: nothing, which drops, where a chain is not there.
func (k rulesOf) judges(iface string) (out [2]string) {
	for d, chain := range k.entries[iface] {
		out[d] = k.chains[chain]
	}
	return out
}

func says(c desired.Chain) string { return fmt.Sprint(c.Rules) }

// writeChains and writeEntries are the halves of a transaction of a driver; removed are those chains that nobody is led to any more.
func (k rulesOf) writeChains(m *Model) (removed []string) {
	for name := range m.Dirty.Chains {
		if c, there := m.Chains[name]; there {
			k.chains[name] = says(c)
		} else {
			removed = append(removed, name)
		}
	}
	return removed
}

func (k rulesOf) writeEntries(m *Model) {
	for iface := range m.Dirty.Workloads {
		delete(k.entries, iface)
		if w, there := m.Workloads[iface]; there {
			k.entries[iface] = [2]string{w.Ingress, w.Egress}
		}
	}
}

func (k rulesOf) clone() rulesOf { return rulesOf{maps.Clone(k.chains), maps.Clone(k.entries)} }

// lists are workloads under lists of policies, as they are told.
type lists struct {
	of map[string]string // by interface
}

func (l lists) chain(id string, d desired.Direction) desired.Chain {
	name := desired.ListChain(id, d)
	return desired.Chain{Name: name, Rules: []desired.Rule{{Do: desired.Deny, Comment: "rules of " + name}}}
}

func (l lists) judges(iface string) (out [2]string) {
	if id := l.of[iface]; id != "" {
		for _, d := range []desired.Direction{desired.Ingress, desired.Egress} {
			out[d] = says(l.chain(id, d))
		}
	}
	return out
}

// to is the change to other lists.
func (l lists) to(next lists) (c desired.FirewallDelta) {
	before, after := map[string]bool{}, map[string]bool{}
	for _, id := range l.of {
		before[id] = true
	}
	for iface, id := range next.of {
		after[id] = true
		if l.of[iface] != id {
			c.Workloads.Put(iface, desired.Workload{Endpoint: iface, Ingress: desired.ListChain(id, desired.Ingress), Egress: desired.ListChain(id, desired.Egress)})
		}
	}
	for _, d := range []desired.Direction{desired.Ingress, desired.Egress} {
		for id := range after {
			if !before[id] {
				x := next.chain(id, d)
				c.Chains.Put(x.Name, x)
			}
		}
		for id := range before {
			if !after[id] {
				c.Chains.Remove(desired.ListChain(id, d))
			}
		}
	}
	for iface := range l.of {
		if _, still := next.of[iface]; !still {
			c.Workloads.Remove(iface)
		}
	}
	return c
}

// Workloads move between lists, alone, in groups and all together. Whatever half of what follows is in the kernel first, each is
// judged by what it was judged by before or by what it shall be, or not let through; and in the end by what it shall be. That
// changes are not committed at once, or not at all, alters nothing. Nothing is kept of names that are not needed.
func TestWhoeverMovesIsJudgedByHisOwnRulesOnly(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	sets := keeper{}
	m := New(sets)
	kernel := rulesOf{map[string]string{}, map[string][2]string{}}
	now := lists{map[string]string{}}
	fresh, kept, late := 0, 0, false
	may := map[string]map[[2]string]bool{} // what a workload may be judged by until the next commit
	for step := range thorough.Rounds(500, 5000) {
		next := lists{maps.Clone(now.of)}
		name := func() string {
			if r.IntN(3) == 0 {
				return fmt.Sprint("l", r.IntN(4)) // one that comes again
			}
			fresh++
			return fmt.Sprint("new", fresh)
		}
		ids := slices.Sorted(maps.Values(now.of))
		switch r.IntN(8) {
		case 0, 1, 2, 3: // all of some lists move, each to another
			for id := range maps.Values(now.of) {
				if r.IntN(2) == 0 {
					to := name()
					for iface, of := range now.of {
						if of == id {
							next.of[iface] = to
						}
					}
				}
			}
		case 4:
			to := name()
			for iface := range now.of {
				if r.IntN(2) == 0 {
					next.of[iface] = to
				}
			}
		case 5, 6:
			to := name()
			if len(ids) > 0 && r.IntN(2) == 0 {
				to = ids[r.IntN(len(ids))]
			}
			next.of[fmt.Sprint("cali", r.IntN(6))] = to
		case 7:
			delete(next.of, fmt.Sprint("cali", r.IntN(6)))
		}
		c := now.to(next)
		m.Update(c, sets)
		now = next
		for iface := range now.of {
			if may[iface] == nil {
				may[iface] = map[[2]string]bool{{}: true, kernel.judges(iface): true}
			}
			may[iface][now.judges(iface)] = true
		}
		half := kernel.clone()
		if r.IntN(2) == 0 {
			half.writeChains(m)
		} else {
			half.writeEntries(m)
		}
		for iface := range now.of {
			ok := [2]map[string]bool{{}, {}}
			for texts := range may[iface] {
				ok[0][texts[0]], ok[1][texts[1]] = true, true
			}
			if late { // what is not committed of a list may come later than who joins it
				ok[0][kernel.chains[m.Workloads[iface].Ingress]], ok[1][kernel.chains[m.Workloads[iface].Egress]] = true, true
			}
			for d, text := range half.judges(iface) {
				require.Contains(t, ok[d], text, "step %d: %s", step, iface)
			}
		}
		if late = r.IntN(4) == 0; late {
			continue // it is not committed
		}
		moved := len(c.Workloads.Set) - len(m.Dirty.Workloads)
		kept += max(moved, 0)
		removed := kernel.writeChains(m)
		kernel.writeEntries(m)
		for _, name := range removed {
			delete(kernel.chains, name)
		}
		m.Compiled()
		m.Settled()
		clear(may)
		for iface := range now.of {
			require.Equal(t, now.judges(iface), kernel.judges(iface), "step %d: %s", step, iface)
		}
		require.Len(t, kernel.chains, len(m.Chains), "step %d", step)
		told := m.Desired(func(string) []view.Member { return nil })
		require.Len(t, told.Workloads.Set, len(now.of))
		for iface, id := range now.of {
			require.Equal(t, desired.ListChain(id, desired.Ingress), told.Workloads.Set[iface].Ingress, "another driver is told the names of lists")
			chain := told.Chains.Set[desired.ListChain(id, desired.Egress)]
			require.Equal(t, now.chain(id, desired.Egress), chain)
		}
		require.LessOrEqual(t, len(m.renames.names), 4*len(m.Chains), "names that nobody uses are forgotten")
	}
	assert.Greater(t, kept, 100, "who moves with all others costs nothing")
}

// A new policy on all endpoints of two lists is an edit of their chains, however many there are; and so is its end.
func TestAListThatAllMoveToKeepsItsChain(t *testing.T) {
	sets := keeper{}
	m := New(sets)
	one, two := lists{map[string]string{}}, lists{map[string]string{}}
	for i := range 10 {
		iface, of := fmt.Sprint("cali", i), i%2
		one.of[iface], two.of[iface] = fmt.Sprint("a", of), fmt.Sprint("b", of)
	}
	m.Update(lists{}.to(one), sets)
	m.Compiled()
	m.Settled()
	for round := range 3 {
		for _, change := range []desired.FirewallDelta{one.to(two), two.to(one)} {
			m.Update(change, sets)
			assert.Empty(t, m.Dirty.Workloads, "round %d", round)
			assert.Equal(t, names{"cali-tw-a0": {}, "cali-tw-a1": {}, "cali-fw-a0": {}, "cali-fw-a1": {}}, m.Dirty.Chains, "round %d", round)
			m.Compiled()
			m.Settled()
		}
		assert.Empty(t, m.renames.names, "round %d", round)
	}
	m.Update(one.to(two), sets)
	assert.Equal(t, "cali-tw-b0", m.ToldAs("cali-tw-a0"))
	m.Compiled()
	// One comes back to where all were: the name of that list is in use.
	three := lists{maps.Clone(two.of)}
	three.of["cali0"] = "a0"
	m.Update(two.to(three), sets)
	assert.Equal(t, names{"cali0": {}}, m.Dirty.Workloads)
	assert.NotEqual(t, m.Workloads["cali0"].Ingress, m.Workloads["cali2"].Ingress)
	assert.Equal(t, "cali-tw-a0", m.ToldAs(m.Workloads["cali0"].Ingress))
	assert.Equal(t, "cali-tw-b0", m.ToldAs(m.Workloads["cali2"].Ingress))
	// The kernel may not have it yet that cali0 left the others: they do not keep its chain.
	four := lists{maps.Clone(three.of)}
	for iface, id := range four.of {
		if id == "b0" {
			four.of[iface] = "c0"
		}
	}
	m.Update(three.to(four), sets)
	assert.Len(t, m.Dirty.Workloads, 5)
}

// Those of a list part, and as many as they were are under one of the lists then; or somebody was there before.
func TestAListThatOthersAreUnderHasAChainOfItsOwn(t *testing.T) {
	for range 20 { // maps have no order
		sets := keeper{}
		m := New(sets)
		one := lists{map[string]string{"cali1": "a", "cali2": "a", "cali3": "b", "cali4": "b"}}
		two := lists{map[string]string{"cali1": "c", "cali2": "d", "cali3": "c", "cali4": "b"}}
		m.Update(lists{}.to(one), sets)
		m.Compiled()
		m.Settled()
		m.Update(one.to(two), sets)
		assert.Equal(t, names{"cali1": {}, "cali2": {}, "cali3": {}}, m.Dirty.Workloads)

		m = New(sets)
		m.Update(lists{}.to(one), sets)
		c := desired.FirewallDelta{}
		c.Workloads.Put("cali5", desired.Workload{Ingress: "cali-tw-c", Egress: "cali-fw-c"}) // as yet there is no such chain
		m.Update(c, sets)
		m.Compiled()
		m.Settled()
		three := lists{map[string]string{"cali1": "c", "cali2": "c", "cali3": "b", "cali4": "b"}}
		m.Update(one.to(three), sets)
		assert.Equal(t, names{"cali1": {}, "cali2": {}, "cali5": {}}, m.Dirty.Workloads)
	}
}
