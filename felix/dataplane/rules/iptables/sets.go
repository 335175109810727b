package iptables

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/delta"
)

// sets are the sets of one family, desired beside actual. Rules name a set only while it is usable: it can be, and was,
// written whole.
type sets struct {
	v6    bool
	limit int // most entries of a set

	kernel  *ipset.Kernel
	headers *delta.Tracker[string, ipset.Header] // by the kernel's name
	entries map[string]*entries                  // by the kernel's name
	members map[string]*ipset.Entries            // by set id
	broken  map[string]error                     // by set id: why rules must not name it

	owned   map[string]int                 // sets that belong to rules, with how many chains use them
	ownedBy map[string]map[string]struct{} // sets that belong to the rules of a chain
	stale   map[string]struct{}            // kernel's sets whose entries must be read anew
	busy    map[string]struct{}            // sets that nothing of ours wants, and that rules of others name
}

// entries is what a kernel's set holds and should hold.
type entries = delta.Tracker[view.Member, struct{}]

func newSets(v6 bool, limit int, kernel *ipset.Kernel) *sets {
	return &sets{
		v6: v6, limit: limit, kernel: kernel,
		headers: delta.New[string](ipset.Header.Fits),
		entries: map[string]*entries{}, members: map[string]*ipset.Entries{}, broken: map[string]error{},
		owned: map[string]int{}, ownedBy: map[string]map[string]struct{}{}, stale: map[string]struct{}{}, busy: map[string]struct{}{},
	}
}

// make begins an empty set.
func (s *sets) make(id string, kind view.SetType) {
	name := model.SetName(s.v6, id)
	s.headers.SetDesired(name, ipset.Header{Kind: kind, V6: s.v6})
	e := s.entriesOf(name)
	e.ReplaceDesired(nil)
	s.members[id] = ipset.NewEntries(kind, s.v6, func(m view.Member, in bool) {
		if in {
			e.SetDesired(m, struct{}{})
			return
		}
		e.DeleteDesired(m)
	})
}

func (s *sets) drop(id string) {
	name := model.SetName(s.v6, id)
	delete(s.members, id)
	delete(s.broken, id)
	s.headers.DeleteDesired(name)
	s.entriesOf(name).ReplaceDesired(nil)
	if _, there := s.headers.Actual(name); !there {
		delete(s.entries, name)
	}
}

func (s *sets) entriesOf(name string) *entries {
	e := s.entries[name]
	if e == nil {
		e = delta.New[view.Member](func(struct{}, struct{}) bool { return true })
		s.entries[name] = e
	}
	return e
}

// own makes the sets that belong to the rules of a chain desired, and those that did and no longer do not.
func (s *sets) own(chain string, prefixes map[string][]view.Member) {
	had := s.ownedBy[chain]
	uses := make(map[string]struct{}, len(prefixes))
	for id, members := range prefixes {
		uses[id] = struct{}{}
		if _, already := had[id]; already {
			continue
		}
		if s.owned[id]++; s.owned[id] == 1 {
			s.make(id, view.SetNet)
			s.members[id].Replace(members)
		}
	}
	for id := range had {
		if _, still := uses[id]; still {
			continue
		}
		if s.owned[id]--; s.owned[id] == 0 {
			delete(s.owned, id)
			s.drop(id)
		}
	}
	s.ownedBy[chain] = uses
	if len(uses) == 0 {
		delete(s.ownedBy, chain)
	}
}

// load reads which sets there are, and the entries of those that may not be as believed.
func (s *sets) load(ctx context.Context, all bool) error {
	headers, err := s.kernel.Headers(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(headers, func(name string, h ipset.Header) bool {
		return h.V6 != s.v6 || !ours(s.v6, name)
	})
	for name, h := range headers {
		_, suspect := s.stale[name]
		if _, wanted := s.headers.Desired(name); wanted && (all || suspect || s.differs(name, h)) {
			have, err := s.kernel.Entries(ctx, name)
			if err != nil {
				return err
			}
			s.entriesOf(name).ReplaceActual(have)
		}
	}
	s.headers.ReplaceActual(headers)
	for name, e := range s.entries {
		if _, there := headers[name]; !there {
			e.ReplaceActual(nil)
		}
	}
	clear(s.stale)
	return nil
}

// ours tells whether a set of the kernel's is ours by its name.
func ours(v6 bool, name string) bool {
	return strings.HasPrefix(name, model.SetName(v6, "")) || strings.HasPrefix(name, temporary(v6))
}

// temporary begins the names of sets that are filled to take another's place.
func temporary(v6 bool) string {
	if v6 {
		return "cali6t"
	}
	return "cali4t"
}

// differs tells whether a set's header contradicts what is believed of its entries.
func (s *sets) differs(name string, h ipset.Header) bool {
	have, there := s.headers.Actual(name)
	return !there || !have.Fits(h) || int(h.Len) != count(s.entriesOf(name).AllActual())
}

func count[K comparable, V any](all iter.Seq2[K, V]) (n int) {
	for range all {
		n++
	}
	return n
}

// check looks at the headers alone, and tells what is not as believed.
func (s *sets) check(ctx context.Context) (drifts []dataplane.Drift, err error) {
	headers, err := s.kernel.Headers(ctx)
	if err != nil {
		return nil, err
	}
	for name := range s.headers.AllActual() {
		o := dataplane.Object{Kind: dataplane.KindSet, Key: name}
		switch h, there := headers[name]; {
		case !there:
			drifts = append(drifts, dataplane.Drift{Object: o, What: "set removed"})
		case s.differs(name, h):
			s.stale[name] = struct{}{}
			drifts = append(drifts, dataplane.Drift{Object: o, What: "set changed"})
		}
	}
	return drifts, nil
}

// fill makes the sets that rules will name: all that are wanted are there and hold what they should, or are broken.
// changed tells for which that is new.
func (s *sets) fill(ctx context.Context, f *dataplane.Failures) (changed []string) {
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		err := s.fillOne(ctx, model.SetName(s.v6, id), s.members[id].Len())
		f.Add(dataplane.KindSet, model.SetName(s.v6, id), err)
		if was := s.broken[id]; (was == nil) != (err == nil) {
			changed = append(changed, id)
		}
		if err == nil {
			delete(s.broken, id)
			continue
		}
		s.broken[id] = err
	}
	return changed
}

// many changes of a set are made in another that then takes its place, so that a packet meets the former or the new.
const many = 1000

func (s *sets) fillOne(ctx context.Context, name string, members int) error {
	want, _ := s.headers.Desired(name)
	have, there := s.headers.Actual(name)
	e := s.entries[name]
	if members > s.limit { // also one that is there, from before the limit
		return &dataplane.SetLimitError{Members: members, Limit: s.limit}
	}
	if there && have.Fits(want) && e.InSync() {
		return nil
	}
	want.Max = uint32(s.limit)
	if there && !have.Fits(want) { // of another kind: nothing may name it, and it goes
		if err := s.kernel.Destroy(ctx, name); err != nil {
			return fmt.Errorf("a set of another type is in its place: %w", err)
		}
		s.headers.DeleteActual(name)
		e.ReplaceActual(nil)
		there = false
	}
	updates, deletes := e.Pending()
	if there && (updates+deletes > many || uint32(members) > have.Max) {
		return s.replace(ctx, name, want)
	}
	if !there {
		if err := s.kernel.Create(ctx, name, want); err != nil {
			return fmt.Errorf("create: %w", err)
		}
		s.headers.SetActual(name, want)
	}
	if err := s.kernel.Change(ctx, name, keys(e.Updates()), keys(e.Deletes())); err != nil {
		s.stale[name] = struct{}{}
		return err
	}
	e.ReplaceActual(maps.Collect(e.AllDesired()))
	return nil
}

// replace fills another set and lets it take the place.
func (s *sets) replace(ctx context.Context, name string, want ipset.Header) error {
	other := temporary(s.v6) + "0"
	if err := s.kernel.Destroy(ctx, other); err != nil {
		return fmt.Errorf("remove set %s: %w", other, err)
	}
	if err := s.kernel.Create(ctx, other, want); err != nil {
		return fmt.Errorf("create set %s: %w", other, err)
	}
	e := s.entries[name]
	err := s.kernel.Change(ctx, other, keys(e.AllDesired()), nil)
	if err == nil {
		err = s.kernel.Swap(ctx, other, name)
	}
	if gone := s.kernel.Destroy(ctx, other); err != nil || gone != nil {
		s.stale[name] = struct{}{}
		if err == nil {
			err = gone
		}
		return fmt.Errorf("replace by set %s: %w", other, err)
	}
	s.headers.SetActual(name, want)
	e.ReplaceActual(maps.Collect(e.AllDesired()))
	return nil
}

// sweep removes the sets that nothing wants. One that rules of others name stays until they go: it stops nothing.
func (s *sets) sweep(ctx context.Context, f *dataplane.Failures) {
	clear(s.busy)
	for _, name := range sorted(s.headers.Deletes()) {
		switch err := s.kernel.Destroy(ctx, name); {
		case errors.Is(err, ipset.ErrBusy):
			s.busy[name] = struct{}{}
			continue
		case err != nil:
			f.Add(dataplane.KindSet, name, fmt.Errorf("remove: %w", err))
			continue
		}
		s.headers.DeleteActual(name)
		delete(s.entries, name)
	}
}

// usable tells whether rules may name a set.
func (s *sets) usable(id string) bool { return s.broken[id] == nil }

func (s *sets) inSync() bool {
	if updates, deletes := s.headers.Pending(); updates > 0 || deletes > len(s.busy) || len(s.stale) > 0 {
		return false
	}
	for name := range s.headers.AllDesired() {
		if !s.entries[name].InSync() {
			return false
		}
	}
	return true
}

func keys[K comparable, V any](all iter.Seq2[K, V]) (out []K) {
	for k := range all {
		out = append(out, k)
	}
	return out
}

// sorted are the keys in order, so that equal models give equal transactions.
func sorted[V any](all iter.Seq2[string, V]) []string {
	out := keys(all)
	slices.Sort(out)
	return out
}

// both are the sets of both families, as the model writes them.
type both []*sets

// Make begins an empty set.
func (b both) Make(id string, kind view.SetType) {
	for _, s := range b {
		s.make(id, kind)
	}
}

// Replace makes members the whole set.
func (b both) Replace(id string, members []view.Member) {
	for _, s := range b {
		s.members[id].Replace(members)
	}
}

// Change changes members.
func (b both) Change(id string, d desired.SetDelta) {
	for _, s := range b {
		for _, m := range d.Removed {
			s.members[id].Remove(m)
		}
		for _, m := range d.Added {
			s.members[id].Add(m)
		}
	}
}

// Drop makes a set undesired.
func (b both) Drop(id string) {
	for _, s := range b {
		s.drop(id)
	}
}
