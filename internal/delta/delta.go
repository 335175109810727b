// Package delta keeps desired and actual state side by side and knows, at every moment, what differs. A driver feeds it
// facts as they arrive and drains the difference; a resync replaces the actual side and nothing else.
package delta

import (
	"iter"
	"maps"
)

// Tracker holds two maps, desired and actual, and the difference between them. The zero value is not usable; see New. It
// is not safe for concurrent use. Its memory is that of the two maps and of the difference.
type Tracker[K comparable, V any] struct {
	equal   func(a, b V) bool
	desired map[K]V
	actual  map[K]V
	updates map[K]struct{} // desired, and missing or different in actual
	deletes map[K]struct{} // actual, and not desired
}

// New returns an empty tracker that compares values with equal.
func New[K comparable, V any](equal func(a, b V) bool) *Tracker[K, V] {
	return &Tracker[K, V]{
		equal:   equal,
		desired: map[K]V{}, actual: map[K]V{},
		updates: map[K]struct{}{}, deletes: map[K]struct{}{},
	}
}

// SetDesired says that k should have value v.
func (t *Tracker[K, V]) SetDesired(k K, v V) {
	t.desired[k] = v
	t.judge(k)
}

// DeleteDesired says that k should not be there.
func (t *Tracker[K, V]) DeleteDesired(k K) {
	delete(t.desired, k)
	t.judge(k)
}

// ReplaceDesired makes all the whole desired state. The tracker keeps no reference to the map.
func (t *Tracker[K, V]) ReplaceDesired(all map[K]V) {
	for k := range t.desired {
		if _, ok := all[k]; !ok {
			t.DeleteDesired(k)
		}
	}
	for k, v := range all {
		t.SetDesired(k, v)
	}
}

// SetActual says that k was seen, or written, with value v.
func (t *Tracker[K, V]) SetActual(k K, v V) {
	t.actual[k] = v
	t.judge(k)
}

// DeleteActual says that k was seen, or made, to be absent.
func (t *Tracker[K, V]) DeleteActual(k K) {
	delete(t.actual, k)
	t.judge(k)
}

// ReplaceActual makes all the whole actual state, as after reading everything anew. The tracker keeps no reference to
// the map.
func (t *Tracker[K, V]) ReplaceActual(all map[K]V) {
	for k := range t.actual {
		if _, ok := all[k]; !ok {
			t.DeleteActual(k)
		}
	}
	for k, v := range all {
		t.SetActual(k, v)
	}
}

// Desired returns what k should be.
func (t *Tracker[K, V]) Desired(k K) (V, bool) {
	v, ok := t.desired[k]
	return v, ok
}

// Actual returns what k is, as far as is known.
func (t *Tracker[K, V]) Actual(k K) (V, bool) {
	v, ok := t.actual[k]
	return v, ok
}

// AllDesired yields the desired state in no order.
func (t *Tracker[K, V]) AllDesired() iter.Seq2[K, V] { return maps.All(t.desired) }

// AllActual yields the actual state in no order.
func (t *Tracker[K, V]) AllActual() iter.Seq2[K, V] { return maps.All(t.actual) }

// Updates yields what must be written: keys with their desired values. The loop's body may call any Set or Delete method.
func (t *Tracker[K, V]) Updates() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k := range t.updates {
			if !yield(k, t.desired[k]) {
				return
			}
		}
	}
}

// Deletes yields what must be removed: keys with their actual values. The loop's body may call any Set or Delete method.
func (t *Tracker[K, V]) Deletes() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k := range t.deletes {
			if !yield(k, t.actual[k]) {
				return
			}
		}
	}
}

// InSync tells whether nothing differs.
func (t *Tracker[K, V]) InSync() bool { return len(t.updates) == 0 && len(t.deletes) == 0 }

// Pending returns how many writes and removals are due.
func (t *Tracker[K, V]) Pending() (updates, deletes int) { return len(t.updates), len(t.deletes) }

func (t *Tracker[K, V]) judge(k K) {
	want, wanted := t.desired[k]
	have, there := t.actual[k]
	mark(&t.updates, k, wanted && (!there || !t.equal(want, have)))
	mark(&t.deletes, k, there && !wanted)
}

// mark puts a key into a set, or takes it out. An empty set gives the memory back that it had when it was large.
func mark[K comparable](set *map[K]struct{}, k K, in bool) {
	if in {
		(*set)[k] = struct{}{}
		return
	}
	if len(*set) == 0 {
		return
	}
	if delete(*set, k); len(*set) == 0 {
		*set = map[K]struct{}{}
	}
}
