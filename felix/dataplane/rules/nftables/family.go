package nftables

import (
	"context"
	"maps"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
	"github.com/muslin-net/muslin/internal/delta"
)

// elements is what a kernel set holds and should hold. Sets that are no verdict maps have zero verdicts.
type elements = delta.Tracker[string, nft.Verdict]

// family is one of our two tables, desired beside actual.
type family struct {
	nft.Table
	exists bool // the table is in the kernel
	stale  bool // actual must be read anew
	absent bool // the kernel does not have the family

	chains   *delta.Tracker[string, chain]
	sets     *delta.Tracker[string, nft.SetSpec]
	elements map[string]*elements // by kernel set
	touched  map[string]struct{}  // chains whose rules others changed

	members map[string]*ipset.Set      // by set id
	owned   map[string]int             // sets that belong to rules, with how many chains use them
	ownedBy map[string]map[string]bool // sets that belong to the rules of a chain
	sources map[string][]string        // what is desired in the set of own sources, by workload
	bases   map[string]bool            // chains that exist once: true if desired, false if to be removed
}

func newFamily(f nft.Family) *family {
	return &family{
		Table: nft.Table{Family: f, Name: tableName}, stale: true,
		chains:   delta.New[string](chain.equal),
		sets:     delta.New[string](func(a, b nft.SetSpec) bool { return a == b }),
		elements: map[string]*elements{}, touched: map[string]struct{}{},
		members: map[string]*ipset.Set{}, owned: map[string]int{}, ownedBy: map[string]map[string]bool{},
		sources: map[string][]string{}, bases: map[string]bool{},
	}
}

func (f *family) version() int {
	if f.Family == nft.IP6 {
		return 6
	}
	return 4
}

// wantSet makes a set desired and returns its elements.
func (f *family) wantSet(name string, spec nft.SetSpec) *elements {
	f.sets.SetDesired(name, spec)
	return f.elementsOf(name)
}

func (f *family) elementsOf(name string) *elements {
	e := f.elements[name]
	if e == nil {
		e = delta.New[string](func(a, b nft.Verdict) bool { return a == b })
		f.elements[name] = e
	}
	return e
}

// dropSet makes a set undesired, with its elements.
func (f *family) dropSet(name string) {
	f.sets.DeleteDesired(name)
	if e := f.elements[name]; e != nil {
		e.ReplaceDesired(nil)
		if _, there := f.sets.Actual(name); !there {
			delete(f.elements, name)
		}
	}
}

// wantChain makes a compiled chain desired, with the sets that belong to its rules.
func (f *family) wantChain(name string, c chain, sets map[string]contents) {
	f.chains.SetDesired(name, c)
	had := f.ownedBy[name]
	uses := make(map[string]bool, len(sets))
	for set, content := range sets {
		uses[set] = true
		if had[set] {
			continue
		}
		if f.owned[set]++; f.owned[set] == 1 {
			e := f.wantSet(set, content.spec)
			for _, k := range content.elements {
				e.SetDesired(k, nft.Verdict{})
			}
		}
	}
	f.release(had, uses)
	f.ownedBy[name] = uses
	if len(uses) == 0 {
		delete(f.ownedBy, name)
	}
}

// dropChain makes a chain undesired.
func (f *family) dropChain(name string) {
	f.chains.DeleteDesired(name)
	f.release(f.ownedBy[name], nil)
	delete(f.ownedBy, name)
}

func (f *family) release(had, still map[string]bool) {
	for set := range had {
		if still[set] {
			continue
		}
		if f.owned[set]--; f.owned[set] == 0 {
			delete(f.owned, set)
			f.dropSet(set)
		}
	}
}

// load reads the table.
func (f *family) load(ctx context.Context, c *nlsock.Conn) error {
	got, err := f.Read(ctx, c)
	if err != nil {
		return err
	}
	f.take(got)
	f.stale = false
	return nil
}

// take makes what was read the actual state.
func (f *family) take(got nft.Contents) {
	f.exists = got.Exists
	chains := make(map[string]chain, len(got.Chains))
	for name, c := range got.Chains {
		out := chain{base: c.Base}
		for _, comment := range c.Rules {
			out.rules = append(out.rules, rule{comment: comment})
		}
		if _, suspect := f.touched[name]; suspect {
			// Someone changed its rules, perhaps without changing a comment: it must differ from whatever is desired.
			out.rules = append(out.rules, rule{comment: "changed by others"})
		}
		chains[name] = out
	}
	clear(f.touched)
	f.chains.ReplaceActual(chains)
	specs := make(map[string]nft.SetSpec, len(got.Sets))
	for name, s := range got.Sets {
		specs[name] = s.Spec
		f.elementsOf(name).ReplaceActual(s.Elements)
	}
	f.sets.ReplaceActual(specs)
	for name, e := range f.elements {
		if _, there := specs[name]; !there {
			e.ReplaceActual(nil)
			if _, wanted := f.sets.Desired(name); !wanted {
				delete(f.elements, name)
			}
		}
	}
}

// misfit tells whether a chain or set is there with properties that cannot be changed: then only a new table helps.
func (f *family) misfit() bool {
	for name, want := range f.sets.Updates() {
		if have, there := f.sets.Actual(name); there && have != want {
			return true
		}
	}
	for name, want := range f.chains.Updates() {
		have, there := f.chains.Actual(name)
		if !there {
			continue
		}
		if (have.base == nil) != (want.base == nil) || (have.base != nil && *have.base != *want.base) {
			return true
		}
	}
	return false
}

// inSync tells whether nothing is due, as far as is known.
func (f *family) inSync() bool {
	if !f.chains.InSync() || !f.sets.InSync() {
		return false
	}
	for e := range maps.Values(f.elements) {
		if !e.InSync() {
			return false
		}
	}
	return true
}
