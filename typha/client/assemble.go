package client

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

// assembler puts the parts of a stream together into whole batches. It is pure: bytes in, steps out.
//
// It holds the view as handed over last, and gathers what comes until a checkpoint says that it is whole. What was
// gathered when a stream breaks is forgotten; what is held stays, and is what the next stream resumes from.
type assembler struct {
	items map[view.Key]*entry // what was handed over
	point view.Checkpoint     // the highest checkpoint seen
	next  gathering
}

// gathering is what came since the last whole batch.
type gathering struct {
	fresh  bool // typha sends its whole view: what does not come is gone
	puts   map[view.Key]put
	drops  map[view.Key]struct{}
	deltas map[view.Key][]view.IPSetDelta // how the sets in puts came about, where that was by deltas alone
	parts  map[view.Key][]view.Member     // sets of which more is to come
	owed   map[view.Key]struct{}          // sets whose delta did not fit; they were asked for again

	skipped  uint64     // items of unknown kinds
	failures []Failure  // items that cannot be read
	resend   []view.Key // what to ask for again and was not asked for yet
}

func newAssembler() *assembler {
	a := &assembler{items: map[view.Key]*entry{}}
	a.reset()
	return a
}

// reset forgets what was gathered.
func (a *assembler) reset() {
	a.next = gathering{
		puts: map[view.Key]put{}, drops: map[view.Key]struct{}{}, deltas: map[view.Key][]view.IPSetDelta{},
		parts: map[view.Key][]view.Member{}, owed: map[view.Key]struct{}{},
	}
}

// startOver notes that the whole view follows.
func (a *assembler) startOver() {
	a.reset()
	a.next.fresh = true
}

// digests tell in short what is held.
func (a *assembler) digests() *view.Digests {
	var d view.Digests
	for k, e := range a.items {
		d.Add(k, e.version)
	}
	return &d
}

// have yields what is held in some parts.
func (a *assembler) have(parts []uint8) iter.Seq2[view.Key, view.Version] {
	return func(yield func(view.Key, view.Version) bool) {
		for k, e := range a.items {
			if slices.Contains(parts, view.PartOf(k)) && !yield(k, e.version) {
				return
			}
		}
	}
}

// put takes a serialised item. An item that cannot be read is noted and left out: one bad item must not keep all others
// from the node. It stays at the version held, so that the next stream brings it again.
func (a *assembler) put(b []byte) {
	it, err := wire.Decode(b)
	switch {
	case errors.Is(err, wire.ErrUnknownKind):
		a.next.skipped++
	case err != nil:
		a.next.failures = append(a.next.failures, Failure{Reason: fmt.Sprintf("cannot be read, so what was there before stays: %v", err)})
	default:
		a.take(it, b)
	}
}

func (a *assembler) take(it wire.Item, raw []byte) {
	g, k := &a.next, it.Key()
	if set, ok := it.Item.(view.IPSet); ok {
		if it.More {
			g.parts[k] = append(g.parts[k], set.Members...)
			return
		}
		if before, ok := g.parts[k]; ok {
			set.Members = append(before, set.Members...)
			it.Item, raw = set, nil
			delete(g.parts, k)
		}
	}
	if d, ok := it.Item.(view.IPSetDelta); ok {
		a.takeDelta(k, d)
		return
	}
	delete(g.owed, k)
	delete(g.deltas, k)
	delete(g.drops, k)
	e := &entry{version: it.Version, raw: raw}
	if set, ok := it.Item.(view.IPSet); ok {
		e.set = &set
	}
	g.puts[k] = put{e, it.Item}
}

func (a *assembler) takeDelta(k view.Key, d view.IPSetDelta) {
	g := &a.next
	if _, owed := g.owed[k]; owed {
		return // the whole set is on its way
	}
	base, gathered := g.puts[k].entry, true
	if base == nil {
		if gathered = false; !g.fresh {
			base = a.items[k]
		}
	}
	_, dropped := g.drops[k]
	if base == nil || base.set == nil || dropped || base.version != d.From {
		a.owe(k)
		return
	}
	changed, version := applyDelta(*base.set, base.version, d)
	if version != d.To {
		a.owe(k)
		return
	}
	if steps := g.deltas[k]; !gathered || steps != nil {
		g.deltas[k] = append(steps, d)
	}
	g.puts[k] = put{&entry{version: version, set: &changed}, changed}
}

// owe notes that a set has to be sent again. Until it is there, nothing is whole.
func (a *assembler) owe(k view.Key) {
	a.next.owed[k] = struct{}{}
	a.next.resend = append(a.next.resend, k)
}

// remove takes a key that the view no longer holds.
func (a *assembler) remove(k view.Key) {
	g := &a.next
	delete(g.puts, k)
	delete(g.deltas, k)
	delete(g.owed, k)
	delete(g.parts, k)
	g.drops[k] = struct{}{}
}

// takeResend returns what to ask for again, once.
func (a *assembler) takeResend() []view.Key {
	keys := a.next.resend
	a.next.resend = nil
	return keys
}

// checkpoint ends a batch. It returns the step from what was handed over to here, and false if that is not whole yet:
// sets are owed, or the view that follows a new start is not complete.
func (a *assembler) checkpoint(point view.Checkpoint, inSync bool) (step, bool) {
	g := &a.next
	if len(g.owed) > 0 || len(g.parts) > 0 || (g.fresh && !inSync) {
		return step{}, false
	}
	s := step{puts: g.puts, point: point, inSync: inSync, deltas: g.deltas, skipped: g.skipped, failures: g.failures}
	if g.fresh {
		for k := range a.items {
			if _, there := g.puts[k]; !there {
				s.drops = append(s.drops, k)
			}
		}
	} else {
		for k := range g.drops {
			if _, there := a.items[k]; there {
				s.drops = append(s.drops, k)
			}
		}
	}
	for k, p := range g.puts {
		if had, ok := a.items[k]; ok && had.version == p.version {
			delete(g.puts, k) // sent again, and nothing new
			delete(g.deltas, k)
		}
	}
	s.change(a.items)
	a.point = point
	a.reset()
	return s, true
}

// load makes a saved view what is held.
func (a *assembler) load(items map[view.Key]*entry, point view.Checkpoint) {
	a.items, a.point = items, point
}

// touches tells whether an item of a kind comes or goes.
func (s step) touches(kind view.Kind) bool {
	for k := range s.puts {
		if k.Kind == kind {
			return true
		}
	}
	return slices.ContainsFunc(s.drops, func(k view.Key) bool { return k.Kind == kind })
}

// batch is what the handler is given of a step: updates in ascending, removes in descending order of kind.
func (s step) batch(setDeltas bool) view.Batch {
	b := view.Batch{Removes: s.drops, Checkpoint: s.point, InSync: s.inSync}
	for _, k := range slices.SortedFunc(maps.Keys(s.puts), views.CompareKeys) {
		if steps := s.deltas[k]; setDeltas && steps != nil {
			for _, d := range steps {
				b.Updates = append(b.Updates, d)
			}
			continue
		}
		b.Updates = append(b.Updates, s.puts[k].item)
	}
	slices.SortFunc(b.Removes, func(x, y view.Key) int { return views.CompareKeys(y, x) })
	return b
}

// applyDelta returns the set after a delta, and its version reckoned from the version before. The set at the version
// that the delta starts from has the members that typha started from, so if both come to the same version, the members
// are the same too.
func applyDelta(set view.IPSet, version view.Version, d view.IPSetDelta) (view.IPSet, view.Version) {
	for _, m := range d.Added {
		version = version.AddMember(m)
	}
	for _, m := range d.Removed {
		version = version.RemoveMember(m)
	}
	gone := make(map[view.Member]struct{}, len(d.Removed))
	for _, m := range d.Removed {
		gone[m] = struct{}{}
	}
	added := slices.SortedFunc(slices.Values(d.Added), views.CompareMembers)
	merged := make([]view.Member, 0, max(0, len(set.Members)+len(added)-len(gone)))
	for _, m := range set.Members {
		if _, leaves := gone[m]; leaves {
			continue
		}
		for len(added) > 0 && views.CompareMembers(added[0], m) < 0 {
			merged, added = append(merged, added[0]), added[1:]
		}
		merged = append(merged, m)
	}
	if set.Members = append(merged, added...); len(set.Members) == 0 {
		set.Members = nil // as an empty set is decoded
	}
	return set, version
}
