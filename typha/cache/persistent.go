package cache

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
)

// Map is a persistent map: an immutable value that With and Without return changed copies of, which share all but a few
// nodes with the original. It is a hash trie of 32 branches a level. The zero value is empty.
type Map[K comparable, V any] struct {
	root *trie[K, V]
	size int
}

// seed is drawn once a process. It decides where keys lie, never what a map holds.
var seed = maphash.MakeSeed()

// trie is one level. Below the last level, where the hash is used up, slots is a plain list.
type trie[K comparable, V any] struct {
	present uint32 // which of the 32 branches are in slots
	slots   []slot[K, V]
}

// slot is either a further level or an entry.
type slot[K comparable, V any] struct {
	below *trie[K, V]
	entry *entry[K, V]
}

type entry[K comparable, V any] struct {
	key   K
	value V
	hash  uint64
}

const (
	branchBits = 5
	hashBits   = 64
)

// Len is the number of entries.
func (m Map[K, V]) Len() int { return m.size }

// Get returns a key's value and whether there is one.
func (m Map[K, V]) Get(k K) (v V, ok bool) {
	t, hash := m.root, maphash.Comparable(seed, k)
	for shift := 0; t != nil; shift += branchBits {
		i, found := t.find(hash, shift, k)
		if !found {
			return v, false
		}
		if e := t.slots[i].entry; e != nil {
			if e.key == k {
				return e.value, true
			}
			return v, false
		}
		t = t.slots[i].below
	}
	return v, false
}

// find returns the slot where a key is or belongs, and whether something is there.
func (t *trie[K, V]) find(hash uint64, shift int, k K) (int, bool) {
	if shift >= hashBits {
		i := slices.IndexFunc(t.slots, func(s slot[K, V]) bool { return s.entry.key == k })
		if i < 0 {
			return len(t.slots), false
		}
		return i, true
	}
	bit := uint32(1) << (hash >> shift & (1<<branchBits - 1))
	return bits.OnesCount32(t.present & (bit - 1)), t.present&bit != 0
}

// With returns the map with a key set.
func (m Map[K, V]) With(k K, v V) Map[K, V] {
	root := m.root
	if root == nil {
		root = &trie[K, V]{}
	}
	root, added := root.with(&entry[K, V]{k, v, maphash.Comparable(seed, k)}, 0)
	if added {
		m.size++
	}
	return Map[K, V]{root, m.size}
}

func (t *trie[K, V]) with(e *entry[K, V], shift int) (*trie[K, V], bool) {
	i, found := t.find(e.hash, shift, e.key)
	if !found {
		out := &trie[K, V]{slots: make([]slot[K, V], 0, len(t.slots)+1)}
		out.slots = append(append(append(out.slots, t.slots[:i]...), slot[K, V]{entry: e}), t.slots[i:]...)
		if shift < hashBits {
			out.present = t.present | 1<<(e.hash>>shift&(1<<branchBits-1))
		}
		return out, true
	}
	out := &trie[K, V]{t.present, slices.Clone(t.slots)}
	had := t.slots[i]
	if had.entry != nil && had.entry.key == e.key {
		out.slots[i].entry = e
		return out, false
	}
	below, added := had.below, true
	if had.entry != nil {
		below, _ = (&trie[K, V]{}).with(had.entry, shift+branchBits)
	}
	below, added = below.with(e, shift+branchBits)
	out.slots[i] = slot[K, V]{below: below}
	return out, added
}

// Without returns the map without a key.
func (m Map[K, V]) Without(k K) Map[K, V] {
	if m.root == nil {
		return m
	}
	root, removed := m.root.without(maphash.Comparable(seed, k), k, 0)
	if !removed {
		return m
	}
	return Map[K, V]{root, m.size - 1}
}

// without returns nil for what becomes empty.
func (t *trie[K, V]) without(hash uint64, k K, shift int) (*trie[K, V], bool) {
	i, found := t.find(hash, shift, k)
	if !found {
		return t, false
	}
	had := t.slots[i]
	if had.entry != nil {
		if had.entry.key != k {
			return t, false
		}
		return t.drop(i, hash, shift), true
	}
	below, removed := had.below.without(hash, k, shift+branchBits)
	if !removed {
		return t, false
	}
	if below == nil {
		return t.drop(i, hash, shift), true
	}
	out := &trie[K, V]{t.present, slices.Clone(t.slots)}
	out.slots[i].below = below
	if len(below.slots) == 1 && below.slots[0].entry != nil {
		out.slots[i] = below.slots[0] // a lone entry needs no level of its own
	}
	return out, true
}

func (t *trie[K, V]) drop(i int, hash uint64, shift int) *trie[K, V] {
	if len(t.slots) == 1 {
		return nil
	}
	out := &trie[K, V]{slots: slices.Delete(slices.Clone(t.slots), i, i+1)}
	if shift < hashBits {
		out.present = t.present &^ (1 << (hash >> shift & (1<<branchBits - 1)))
	}
	return out
}

// All yields the entries in no order.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { m.root.all(yield) }
}

func (t *trie[K, V]) all(yield func(K, V) bool) bool {
	if t == nil {
		return true
	}
	for _, s := range t.slots {
		if s.entry != nil {
			if !yield(s.entry.key, s.entry.value) {
				return false
			}
		} else if !s.below.all(yield) {
			return false
		}
	}
	return true
}
