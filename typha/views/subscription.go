package views

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/view"
)

// Subscription is one client's place in one view. Next and Resend are called by one goroutine at a time; Close by any.
type Subscription struct {
	store *Store
	scope Scope
	wake  func()

	// All below is written by Commit under the store's write lock, and by Next under its read lock: Nexts of different
	// clients run side by side, each on its own.
	primed     bool                      // the first cut was taken
	have       map[view.Key]view.Version // what the client had; gone with the first cut
	dirty      map[view.Key]view.Version // scoped keys that changed, with the version that the client has of them
	generation uint64                    // the client has all common entries as of this one
	progress   uint64                    // the checkpoint it has
	woken      bool                      // wake was called since the last Next
	asked      []uint8                   // parts that Named will be about
}

// unknown stands for the version of an item of which nothing is known: not even whether the client has it.
var unknown = view.Version{0: 0xff, 15: 0xff}

// nowhere is the progress of one that has no checkpoint.
const nowhere = ^uint64(0)

// Subscribe opens a view for a client that already has the items in have (nil if it has none). The subscription takes
// over the map. wake is called after a Commit that gives the client something to take; it is called at most once until
// the next Next, must not block, and must not call into the store. It may come once more right after Close.
//
// Call Next right after Subscribe: there is no wake for what is there already.
func (s *Store) Subscribe(scope Scope, have map[view.Key]view.Version, wake func()) *Subscription {
	sub := &Subscription{store: s, scope: scope, wake: wake, have: have}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scope(scope).subs[sub] = struct{}{}
	return sub
}

// Resume opens a view for a client that says by digests what it has. differing are the parts of which that is not what the view
// has: before the first Next, Named must tell what the client has there.
func (s *Store) Resume(scope Scope, has *view.Digests, wake func()) (sub *Subscription, differing []uint8) {
	sub = &Subscription{store: s, scope: scope, wake: wake}
	s.mu.Lock()
	defer s.mu.Unlock()
	sc := s.scope(scope)
	sc.subs[sub] = struct{}{}
	if !s.inSync { // nothing can be compared with what is not known yet
		sub.asked = has.Differing(&view.Digests{})
		return sub, sub.asked
	}
	sums := s.common[scope.View].sums
	for _, e := range sc.entries.list {
		sums.Add(e.Key, e.Version)
	}
	// It is as one that took its first cut now and has all of it, but for what Named will say.
	sub.primed, sub.generation, sub.dirty = true, s.generation, map[view.Key]view.Version{}
	sub.progress = nowhere // it is told where it is, though nothing else may be due
	sub.asked = has.Differing(&sums)
	return sub, sub.asked
}

// Named tells which items the client has in the parts that Resume returned. The subscription takes over the map.
func (sub *Subscription) Named(have map[view.Key]view.Version) {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	var asked [view.Parts]bool
	for _, part := range sub.asked {
		asked[part] = true
	}
	sub.asked = nil
	maps.DeleteFunc(have, func(k view.Key, _ view.Version) bool { return !asked[view.PartOf(k)] })
	if !sub.primed {
		sub.have = have
		return
	}
	for e := range s.all(sub.scope) {
		if asked[view.PartOf(e.Key)] {
			sub.dirty[e.Key] = have[e.Key]
			delete(have, e.Key)
		}
	}
	maps.Copy(sub.dirty, have)
}

// Close ends the subscription. It may be called more than once.
func (sub *Subscription) Close() {
	s := sub.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if sc := s.scopes[sub.scope]; sc != nil {
		delete(sc.subs, sub)
		s.forgetIfEmpty(sub.scope)
	}
}

// Next takes everything that the client lacks as of the newest generation, and counts it as delivered. It returns false
// if there is nothing, not even a new checkpoint. Before the store is in sync there is nothing: a client that resumes
// must not be told to remove what typha merely has not read yet.
func (sub *Subscription) Next() (Cut, bool) {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	sub.woken = false
	if !s.inSync {
		return Cut{}, false
	}
	cut := Cut{Checkpoint: s.checkpoint, InSync: true}
	first := !sub.primed
	if first {
		sub.whole(&cut)
	} else {
		sub.changed(&cut)
	}
	sub.generation = s.generation
	moved := sub.progress != s.progress
	sub.progress = s.progress
	if !first && !moved && len(cut.Updates) == 0 && len(cut.Removes) == 0 {
		return Cut{}, false
	}
	cut.sort(first)
	return cut, true
}

// Status counts the items of the view, and those that the next Next has for the client. Any goroutine may ask. It stops
// the store for the time it takes: it is for people.
func (sub *Subscription) Status() (items, pending int) {
	s := sub.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := range s.all(sub.scope) {
		items++
		if !sub.primed && sub.have[e.Key] != e.Version {
			pending++
		}
	}
	if sub.primed {
		pending = len(sub.dirty)
		for range s.common[sub.scope.View].since(sub.generation) {
			pending++
		}
	}
	return items, pending
}

// whole compares the whole view with what the client had.
func (sub *Subscription) whole(cut *Cut) {
	if len(sub.have) == 0 {
		cut.Common = sub.store.common[sub.scope.View].list()
		if sc := sub.store.scopes[sub.scope]; sc != nil {
			cut.Updates = slices.Clone(sc.entries.list)
		}
	} else {
		for e := range sub.store.all(sub.scope) {
			had := sub.have[e.Key]
			delete(sub.have, e.Key)
			if e.Version != had {
				cut.Updates = append(cut.Updates, e.since(had))
			}
		}
	}
	for k := range sub.have {
		cut.Removes = append(cut.Removes, k)
	}
	sub.primed, sub.have, sub.dirty = true, nil, map[view.Key]view.Version{}
}

// changed looks at what changed since the last cut.
func (sub *Subscription) changed(cut *Cut) {
	s := sub.store
	for sl := range s.common[sub.scope.View].since(sub.generation) {
		if sl.entry == nil {
			cut.Removes = append(cut.Removes, sl.key)
		} else {
			cut.Updates = append(cut.Updates, sl.entry)
		}
		delete(sub.dirty, sl.key) // asked for again by Resend
	}
	for k, had := range sub.dirty {
		e := s.get(sub.scope, k)
		switch {
		case e == nil && had != view.Version{}:
			cut.Removes = append(cut.Removes, k)
		case e != nil && e.Version != had:
			cut.Updates = append(cut.Updates, e.since(had))
		}
	}
	if len(sub.dirty) > 0 {
		sub.dirty = map[view.Key]view.Version{} // a new one: a map that was once large stays large
	}
}

// All are the updates, common ones and others, in their order.
func (c *Cut) All() []*Entry {
	return slices.AppendSeq(make([]*Entry, 0, len(c.Updates)+len(c.Common)), inOrder(c.Common, c.Updates))
}

// Resend makes the next cut carry the given items again, whole, or remove them if the view does not hold them. Without
// keys it carries the whole view, and the caller must tell the client to forget what it has.
func (sub *Subscription) Resend(keys ...view.Key) {
	sub.store.mu.RLock()
	defer sub.store.mu.RUnlock()
	switch {
	case len(keys) == 0:
		sub.primed, sub.have, sub.dirty = false, nil, nil
	case sub.primed:
		for _, k := range keys {
			sub.dirty[k] = unknown
		}
	default:
		for _, k := range keys {
			if _, ok := sub.have[k]; ok {
				sub.have[k] = unknown
			}
		}
	}
}

// sort puts the cut into the order in which it is to be sent. The updates of a whole view are in it already.
func (c *Cut) sort(whole bool) {
	if !whole {
		slices.SortFunc(c.Updates, func(a, b *Entry) int { return CompareKeys(a.Key, b.Key) })
	}
	slices.SortFunc(c.Removes, func(a, b view.Key) int {
		if d := cmp.Compare(b.Kind, a.Kind); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
}

// CompareKeys is the order of items in a batch: by kind, then by id.
func CompareKeys(a, b view.Key) int {
	if d := cmp.Compare(a.Kind, b.Kind); d != 0 {
		return d
	}
	return strings.Compare(a.ID, b.ID)
}
