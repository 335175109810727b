package views

import (
	"maps"
	"sync"

	"github.com/muslin-net/muslin/api/view"
)

// Store holds all views. Commit is called by one goroutine, everything else by any.
type Store struct {
	mu         sync.RWMutex // guards all below, and the subscriptions' marks against Commit
	generation uint64
	inSync     bool
	checkpoint view.Checkpoint // replaced, never changed
	progress   uint64          // counts changes of checkpoint
	floor      view.Checkpoint // replaced, never changed
	common     [viewKinds]*commons
	scopes     map[Scope]*scope
}

// scope is what one scope has beyond the common entries, and who follows it.
type scope struct {
	entries entries
	subs    map[*Subscription]struct{}
}

// NewStore returns an empty store that is not in sync.
func NewStore() *Store {
	s := &Store{scopes: map[Scope]*scope{}}
	for i := range s.common {
		s.common[i] = newCommons()
	}
	return s
}

// Commit applies one generation. Readers see all of it or nothing of it. Clients whose view changes are woken after it
// is done; a checkpoint that moves alone wakes nobody (most changes of a cluster do not concern most nodes), and is
// given out with the next cut or whenever Next is called.
func (s *Store) Commit(c Change) {
	for _, wake := range s.apply(c) {
		wake()
	}
}

// apply returns the wake functions of the clients that have something to take and do not know it yet.
func (s *Store) apply(c Change) (wakes []func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	if c.Checkpoint != nil && !maps.Equal(c.Checkpoint, s.checkpoint) {
		s.checkpoint = c.Checkpoint
		s.progress++
	}
	if c.Floor != nil {
		s.floor = c.Floor
	}
	becameInSync := c.InSync && !s.inSync
	s.inSync = s.inSync || c.InSync

	touched := map[*Subscription]struct{}{}
	for scope, d := range c.Scopes {
		s.scope(scope).apply(d, touched)
		s.forgetIfEmpty(scope)
	}
	var whole [viewKinds]bool // all clients of the kind have something to take
	for kind := range c.Common {
		whole[kind] = s.common[kind].apply(&c.Common[kind], s.generation) || becameInSync
	}
	for scope, sc := range s.scopes {
		if whole[scope.View] {
			for sub := range sc.subs {
				touched[sub] = struct{}{}
			}
		}
	}
	for kind, common := range s.common {
		common.prune(func() uint64 { return s.oldest(ViewKind(kind)) })
	}
	if !s.inSync {
		return nil
	}
	for sub := range touched {
		if !sub.woken {
			sub.woken = true
			wakes = append(wakes, sub.wake)
		}
	}
	return wakes
}

// scope returns a scope and makes it if there is none.
func (s *Store) scope(name Scope) *scope {
	sc := s.scopes[name]
	if sc == nil {
		sc = &scope{subs: map[*Subscription]struct{}{}}
		s.scopes[name] = sc
	}
	return sc
}

func (s *Store) forgetIfEmpty(name Scope) {
	if sc := s.scopes[name]; len(sc.entries.list) == 0 && len(sc.subs) == 0 {
		delete(s.scopes, name)
	}
}

// oldest is the lowest generation that a client of the kind has taken; without clients the newest.
func (s *Store) oldest(kind ViewKind) uint64 {
	oldest := s.generation
	for scope, sc := range s.scopes {
		if scope.View != kind {
			continue
		}
		for sub := range sc.subs {
			if sub.primed {
				oldest = min(oldest, sub.generation)
			}
		}
	}
	return oldest
}

func (sc *scope) apply(d *Delta, touched map[*Subscription]struct{}) {
	if d.Empty() {
		return
	}
	if len(sc.subs) > 0 {
		for _, e := range d.Put {
			sc.mark(e.Key)
		}
		for _, k := range d.Drop {
			sc.mark(k)
		}
	}
	sc.entries.apply(d)
	for sub := range sc.subs {
		touched[sub] = struct{}{}
	}
}

// mark notes for each client that a key is about to change, with the version that the client has of it.
func (sc *scope) mark(k view.Key) {
	for sub := range sc.subs {
		if !sub.primed {
			continue // it will look at everything anyway
		}
		if _, dirty := sub.dirty[k]; dirty {
			continue
		}
		var had view.Version
		if e := sc.entries.get(k); e != nil {
			had = e.Version
		}
		sub.dirty[k] = had
	}
}

// Checkpoint returns the newest checkpoint and whether the store is in sync. The map must not be changed.
func (s *Store) Checkpoint() (view.Checkpoint, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.checkpoint, s.inSync
}

// Reached tells whether the store has everything that a client with this checkpoint may have seen, here or on another
// replica. Checkpoint alone does not tell: it is the newest of what came in, and kinds do not come in evenly.
func (s *Store) Reached(seen view.Checkpoint) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.inSync {
		return false
	}
	for source, revision := range seen {
		if s.floor[source] < revision {
			return false
		}
	}
	return true
}

// Get returns an entry of a scope's view, or nil.
func (s *Store) Get(name Scope, k view.Key) *Entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.get(name, k)
}

func (s *Store) get(name Scope, k view.Key) *Entry {
	if sc := s.scopes[name]; sc != nil {
		if e := sc.entries.get(k); e != nil {
			return e
		}
	}
	return s.common[name.View].get(k)
}

// View returns all entries of a scope's view by key, as of one generation.
func (s *Store) View(name Scope) map[view.Key]*Entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := map[view.Key]*Entry{}
	for e := range s.all(name) {
		all[e.Key] = e
	}
	return all
}

// all yields the entries of a scope's view in the order of their keys. The store must stay locked meanwhile.
func (s *Store) all(name Scope) func(yield func(*Entry) bool) {
	var own []*Entry
	if sc := s.scopes[name]; sc != nil {
		own = sc.entries.list
	}
	return inOrder(s.common[name.View].list(), own)
}

// inOrder yields the entries of two lists, which have no key in common, in the order of their keys, which is that of each.
func inOrder(common, own []*Entry) func(yield func(*Entry) bool) {
	return func(yield func(*Entry) bool) {
		own := own
		for _, e := range common {
			for len(own) > 0 && CompareKeys(own[0].Key, e.Key) < 0 {
				if !yield(own[0]) {
					return
				}
				own = own[1:]
			}
			if !yield(e) {
				return
			}
		}
		for _, e := range own {
			if !yield(e) {
				return
			}
		}
	}
}
