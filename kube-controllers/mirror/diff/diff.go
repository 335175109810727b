// Package diff decides what to write so that what is stored becomes what should be. It is pure, and says the whole each time:
// the order in which things happened does not matter, and what is done already is not said again.
package diff

import (
	"cmp"
	"slices"

	"github.com/muslin-net/muslin/api"
)

// Rules are what is kept, and how.
type Rules[T api.Object] struct {
	// Owned tells whether a stored object may be changed and deleted. What is not owned is left alone, also where something of
	// its name is wanted.
	Owned func(T) bool
	// OnlyUpdate creates and deletes nothing.
	OnlyUpdate bool
	// Same tells whether a stored object is what is wanted already.
	Same func(stored, want T) bool
	// Fill makes a stored object, of which it is given a copy, what is wanted.
	Fill func(stored, want T)
}

// Plan is what to write, each in the order of keys.
type Plan[T api.Object] struct {
	Create, Update, Delete []T
	Foreign                []T // wanted, but the name is somebody else's
}

// Make compares what should be with what is stored. Of several that are wanted under one key, the first counts.
func Make[T api.Object](want, stored []T, rules Rules[T]) Plan[T] {
	var plan Plan[T]
	have := make(map[api.Key]T, len(stored))
	for _, o := range stored {
		have[api.KeyOf(o)] = o
	}
	wanted := make(map[api.Key]bool, len(want))
	for _, o := range want {
		key := api.KeyOf(o)
		if wanted[key] {
			continue
		}
		wanted[key] = true
		is, exists := have[key]
		switch {
		case !exists && rules.OnlyUpdate:
		case !exists:
			plan.Create = append(plan.Create, o)
		case !rules.Owned(is):
			plan.Foreign = append(plan.Foreign, o)
		case !rules.Same(is, o):
			is = is.DeepCopyObject().(T)
			rules.Fill(is, o)
			plan.Update = append(plan.Update, is)
		}
	}
	for key, o := range have {
		if !wanted[key] && !rules.OnlyUpdate && rules.Owned(o) {
			plan.Delete = append(plan.Delete, o)
		}
	}
	for _, part := range [][]T{plan.Create, plan.Update, plan.Delete, plan.Foreign} {
		slices.SortFunc(part, func(a, b T) int {
			return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
		})
	}
	return plan
}
