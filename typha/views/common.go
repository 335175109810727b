package views

import (
	"slices"
	"sync"

	"github.com/muslin-net/muslin/api/view"
)

// commons are the entries that all scopes of a kind have. They are kept in the order of their last change, so that a
// client that has taken generation g finds what changed since by walking from the newest back to g: a change of 10,000
// routes costs 10,000 steps, and not 10,000 for each of 1,000 clients.
type commons struct {
	slots  map[view.Key]*slot
	newest *slot // a list by generation, newest first
	oldest *slot
	gone   int // how many slots are there for a removed key
	sums   view.Digests

	mu     sync.Mutex // guards sorted, which readers make; changes come while there are none
	sorted []*Entry
}

// list is all entries in the order of their keys. It is made once after a change, by the first who asks, and shared by all clients
// that come; it must not be changed.
func (c *commons) list() []*Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sorted == nil {
		c.sorted = make([]*Entry, 0, len(c.slots)-c.gone)
		for _, sl := range c.slots {
			if sl.entry != nil {
				c.sorted = append(c.sorted, sl.entry)
			}
		}
		slices.SortFunc(c.sorted, func(a, b *Entry) int { return CompareKeys(a.Key, b.Key) })
	}
	return c.sorted
}

// slot is one key. It stays after the entry is removed, until all clients have taken the removal.
type slot struct {
	key          view.Key
	entry        *Entry // nil if removed
	generation   uint64 // of its last change
	newer, older *slot
}

func newCommons() *commons { return &commons{slots: map[view.Key]*slot{}} }

func (c *commons) get(k view.Key) *Entry {
	if sl := c.slots[k]; sl != nil {
		return sl.entry
	}
	return nil
}

// apply tells whether anything changed.
func (c *commons) apply(d *Delta, generation uint64) (changed bool) {
	for _, e := range d.Put {
		if had := c.get(e.Key); had == nil || had.Version != e.Version {
			c.set(e.Key, e, generation)
			changed = true
		}
	}
	for _, k := range d.Drop {
		if c.get(k) != nil {
			c.set(k, nil, generation)
			changed = true
		}
	}
	return changed
}

func (c *commons) set(k view.Key, e *Entry, generation uint64) {
	c.sorted = nil
	sl := c.slots[k]
	if sl == nil {
		sl = &slot{key: k}
		c.slots[k] = sl
	} else {
		if sl.entry == nil {
			c.gone--
		} else {
			c.sums.Remove(k, sl.entry.Version)
		}
		c.unlink(sl)
	}
	sl.entry, sl.generation = e, generation
	if e == nil {
		c.gone++
	} else {
		c.sums.Add(k, e.Version)
	}
	sl.older = c.newest
	if c.newest != nil {
		c.newest.newer = sl
	} else {
		c.oldest = sl
	}
	c.newest = sl
}

func (c *commons) unlink(sl *slot) {
	if sl.newer != nil {
		sl.newer.older = sl.older
	} else {
		c.newest = sl.older
	}
	if sl.older != nil {
		sl.older.newer = sl.newer
	} else {
		c.oldest = sl.newer
	}
	sl.newer, sl.older = nil, nil
}

// since yields the slots that changed after a generation.
func (c *commons) since(generation uint64) func(yield func(*slot) bool) {
	return func(yield func(*slot) bool) {
		for sl := c.newest; sl != nil && sl.generation > generation; sl = sl.older {
			if !yield(sl) {
				return
			}
		}
	}
}

// prune forgets removals that all clients have taken. It looks only when they have become many beside what is alive.
func (c *commons) prune(oldest func() uint64) {
	if c.gone < 64+len(c.slots)/4 {
		return
	}
	taken := oldest()
	for sl := c.oldest; sl != nil && sl.generation <= taken; {
		next := sl.newer
		if sl.entry == nil {
			c.unlink(sl)
			delete(c.slots, sl.key)
			c.gone--
		}
		sl = next
	}
}
