package compute

import (
	"cmp"
	"iter"
	"slices"

	"github.com/muslin-net/muslin/api/selector"
)

// index finds, without trying all, which selectors a subject can match and which subjects a selector can match.
//
// Each selector is filed under one of the things it requires of labels (selector.Required): "app is web or api", "has
// zone". A subject then has to be tried only against the selectors filed under its own labels, and those that require
// nothing. The same requirement finds the subjects of a new selector, through postings kept for the label keys that
// some selector is filed under, and no others.
type index struct {
	matched, unmatched func(*selection, *subject)

	selections map[string]*selection // by id of the selector
	places     []*subject            // by number; nil where one has left
	free       []uint32              // numbers of places that are
	subjects   subjects
	keys       map[string]*keyIndex
	loose      map[*selection]struct{} // those that require nothing
	numbers    uint64
}

// selection is one distinct selector and what it selects. It exists while a policy, a set or a peering uses it.
type selection struct {
	number   uint64 // orders the matches of a subject; says nothing
	selector *selector.Selector
	filed    *selector.Requirement // nil if loose or impossible
	never    bool                  // cannot match anything
	subjects subjects

	policies map[*policy]struct{} // those that apply to what it selects
	asks     string               // what they ask of workloads (asks), while there are any
	sets     map[*ipset]struct{}  // those whose members it selects
	peerings map[*peering]struct{}
}

// keyIndex is one label key that selectors are filed under.
type keyIndex struct {
	values map[string]*valueIndex
	any    map[*selection]struct{} // filed under the presence of the key
	filed  int                     // how many selectors are filed under the key
}

// valueIndex is one value of a label key.
type valueIndex struct {
	selections map[*selection]struct{}
	subjects   subjects
}

func newIndex(matched, unmatched func(*selection, *subject)) *index {
	return &index{
		matched: matched, unmatched: unmatched,
		selections: map[string]*selection{},
		keys:       map[string]*keyIndex{},
		loose:      map[*selection]struct{}{},
	}
}

// enter gives a subject its number.
func (x *index) enter(s *subject) {
	if n := len(x.free); n > 0 {
		s.number = x.free[n-1]
		x.free = x.free[:n-1]
		x.places[s.number] = s
		return
	}
	s.number = uint32(len(x.places))
	x.places = append(x.places, s)
}

// leave takes it back. The subject is in no set any more.
func (x *index) leave(s *subject) {
	x.places[s.number] = nil
	x.free = append(x.free, s.number)
}

// of are the subjects of a set, which does not change meanwhile.
func (x *index) of(l subjects) iter.Seq[*subject] {
	return func(yield func(*subject) bool) {
		for _, n := range l {
			if !yield(x.places[n]) {
				return
			}
		}
	}
}

// selection returns the one selection of equal selectors, new ones with their subjects found.
func (x *index) selection(s *selector.Selector) *selection {
	if sel := x.selections[s.ID()]; sel != nil {
		return sel
	}
	x.numbers++
	sel := &selection{
		number:   x.numbers,
		selector: s,
		policies: map[*policy]struct{}{},
		sets:     map[*ipset]struct{}{},
		peerings: map[*peering]struct{}{},
	}
	x.selections[s.ID()] = sel
	x.file(sel)
	x.candidates(sel, func(s *subject) {
		if sel.selector.MatchesLabels(s) {
			sel.subjects = append(sel.subjects, s.number)
			s.matches = insert(s.matches, sel)
		}
	})
	slices.Sort(sel.subjects)
	return sel
}

// release forgets a selection that nothing uses any more.
func (x *index) release(sel *selection) {
	if len(sel.policies) > 0 || len(sel.sets) > 0 || len(sel.peerings) > 0 {
		return
	}
	for s := range x.of(sel.subjects) {
		s.matches = without(s.matches, sel)
	}
	x.unfile(sel)
	delete(x.selections, sel.selector.ID())
}

// file puts a selection under the requirement that fewest others are filed under.
func (x *index) file(sel *selection) {
	var best *selector.Requirement
	bestCost := 0
	required := sel.selector.Required()
	for i := range required {
		r := &required[i]
		if !r.AnyValue && len(r.Values) == 0 {
			sel.never = true
			return
		}
		if cost := x.cost(r); best == nil || cost < bestCost {
			best, bestCost = r, cost
		}
	}
	if best == nil {
		x.loose[sel] = struct{}{}
		return
	}
	sel.filed = best
	k := x.key(best.Key)
	k.filed++
	if best.AnyValue {
		k.any[sel] = struct{}{}
		return
	}
	for _, v := range best.Values {
		k.value(v).selections[sel] = struct{}{}
	}
}

// cost estimates how often a selection filed under r will be tried in vain: by how many selections share the place,
// and how many subjects. Presence of a key alone is taken only where nothing better is required, and a key under which
// none is filed yet, for which all subjects are looked through, only where that saves something.
func (x *index) cost(r *selector.Requirement) int {
	k := x.keys[r.Key]
	cost := len(r.Values)
	if k == nil {
		cost += len(x.subjects) / 100
		k = &keyIndex{}
	}
	if r.AnyValue {
		return 1<<30 + cost + len(k.any)
	}
	for _, v := range r.Values {
		if vi := k.values[v]; vi != nil {
			cost += len(vi.selections)*16 + len(vi.subjects)
		}
	}
	return cost
}

func (x *index) unfile(sel *selection) {
	delete(x.loose, sel)
	if sel.filed == nil {
		return
	}
	k := x.keys[sel.filed.Key]
	delete(k.any, sel)
	for _, v := range sel.filed.Values {
		delete(k.value(v).selections, sel)
		k.tidy(v)
	}
	if k.filed--; k.filed == 0 {
		delete(x.keys, sel.filed.Key)
	}
}

// key returns the index of a label key. A new one is filled with all subjects that have the key.
func (x *index) key(key string) *keyIndex {
	if k := x.keys[key]; k != nil {
		return k
	}
	k := &keyIndex{values: map[string]*valueIndex{}, any: map[*selection]struct{}{}}
	x.keys[key] = k
	for s := range x.of(x.subjects) {
		if v, ok := s.Get(key); ok {
			k.add(v, s)
		}
	}
	return k
}

func (k *keyIndex) value(v string) *valueIndex {
	vi := k.values[v]
	if vi == nil {
		vi = &valueIndex{selections: map[*selection]struct{}{}}
		k.values[v] = vi
	}
	return vi
}

func (k *keyIndex) add(v string, s *subject) {
	k.value(v).subjects.add(s)
}

func (k *keyIndex) remove(v string, s *subject) {
	if vi := k.values[v]; vi != nil {
		vi.subjects.remove(s)
		k.tidy(v)
	}
}

func (k *keyIndex) tidy(v string) {
	if vi := k.values[v]; vi != nil && len(vi.selections) == 0 && len(vi.subjects) == 0 {
		delete(k.values, v)
	}
}

// candidates calls f for all subjects that a selection may match.
func (x *index) candidates(sel *selection, f func(*subject)) {
	switch {
	case sel.never:
	case sel.filed == nil:
		for s := range x.of(x.subjects) {
			f(s)
		}
	case sel.filed.AnyValue:
		for _, vi := range x.keys[sel.filed.Key].values {
			for s := range x.of(vi.subjects) {
				f(s)
			}
		}
	default:
		for _, v := range sel.filed.Values {
			if vi := x.keys[sel.filed.Key].values[v]; vi != nil {
				for s := range x.of(vi.subjects) {
					f(s)
				}
			}
		}
	}
}

// add enters a subject with its present labels, and tells what matches it now and what no longer does.
func (x *index) add(s *subject) {
	x.subjects.add(s)
	var now []*selection
	try := func(sel *selection) {
		if sel.selector.MatchesLabels(s) {
			now = append(now, sel)
		}
	}
	for sel := range x.loose {
		try(sel)
	}
	s.each(func(key, value string) {
		k := x.keys[key]
		if k == nil {
			return
		}
		k.add(value, s)
		for sel := range k.any {
			try(sel)
		}
		for sel := range k.values[value].selections {
			try(sel)
		}
	})
	slices.SortFunc(now, byNumber)
	x.replace(s, now)
}

// posting is a label by which a subject is found.
type posting struct{ key, value string }

// postings are those of a subject, to be kept while its labels change.
func (x *index) postings(s *subject) (list []posting) {
	s.each(func(key, value string) {
		if x.keys[key] != nil {
			list = append(list, posting{key, value})
		}
	})
	return list
}

// relabelled enters a subject whose postings were others. Those that stay are left alone: a list of all subjects is long.
func (x *index) relabelled(s *subject, was []posting) {
	for _, p := range was {
		if now, has := s.Get(p.key); !has || now != p.value {
			x.keys[p.key].remove(p.value, s)
		}
	}
	x.add(s)
}

// remove takes a subject out for good.
func (x *index) remove(s *subject) {
	x.subjects.remove(s)
	for _, p := range x.postings(s) {
		x.keys[p.key].remove(p.value, s)
	}
	x.replace(s, nil)
}

// replace makes now the matches of s and tells the difference. Both lists are in order of number.
func (x *index) replace(s *subject, now []*selection) {
	was := s.matches
	s.matches = slices.Clip(now)
	for len(was) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(was) > 0 && was[0].number < now[0].number:
			was[0].subjects.remove(s)
			x.unmatched(was[0], s)
			was = was[1:]
		case len(was) == 0 || now[0].number < was[0].number:
			now[0].subjects.add(s)
			x.matched(now[0], s)
			now = now[1:]
		default:
			was, now = was[1:], now[1:]
		}
	}
}

func byNumber(a, b *selection) int { return cmp.Compare(a.number, b.number) }

func insert(list []*selection, sel *selection) []*selection {
	i, _ := slices.BinarySearchFunc(list, sel, byNumber)
	return slices.Insert(list, i, sel)
}

func without(list []*selection, sel *selection) []*selection {
	if i, found := slices.BinarySearchFunc(list, sel, byNumber); found {
		return slices.Delete(slices.Clone(list), i, i+1)
	}
	return list
}
