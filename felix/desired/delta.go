package desired

// Delta is a change to a collection of values by key. The zero value changes nothing and is ready to use. A key is in at
// most one of Set and Removed.
type Delta[K comparable, V any] struct {
	Set     map[K]V        // to add, or to replace
	Removed map[K]struct{} // to take away; removing what is not there is no error
}

// Put records that k shall have value v.
func (d *Delta[K, V]) Put(k K, v V) {
	if d.Set == nil {
		d.Set = map[K]V{}
	}
	delete(d.Removed, k)
	d.Set[k] = v
}

// Remove records that k shall not be there.
func (d *Delta[K, V]) Remove(k K) {
	if d.Removed == nil {
		d.Removed = map[K]struct{}{}
	}
	delete(d.Set, k)
	d.Removed[k] = struct{}{}
}

// Merge adds a later change to d.
func (d *Delta[K, V]) Merge(later Delta[K, V]) {
	for k := range later.Removed {
		d.Remove(k)
	}
	for k, v := range later.Set {
		d.Put(k, v)
	}
}

// Empty tells whether d changes nothing.
func (d Delta[K, V]) Empty() bool { return len(d.Set) == 0 && len(d.Removed) == 0 }

// Diff is the change that makes next of prev.
func Diff[K comparable, V any](prev, next map[K]V, equal func(a, b V) bool) Delta[K, V] {
	var d Delta[K, V]
	for k := range prev {
		if _, ok := next[k]; !ok {
			d.Remove(k)
		}
	}
	for k, v := range next {
		if old, ok := prev[k]; !ok || !equal(old, v) {
			d.Put(k, v)
		}
	}
	return d
}
