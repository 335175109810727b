package intake

import (
	"slices"
	"sync"

	"github.com/muslin-net/muslin/typha/compute"
)

// Wanted is the half of a SecretSource that says what is wanted, for sources to embed.
type Wanted struct {
	changed chan struct{} // has room for one

	mu    sync.Mutex // guards all below
	refs  []compute.SecretRef
	fresh []compute.SecretRef
}

// NewWanted returns a Wanted that wants nothing.
func NewWanted() *Wanted { return &Wanted{changed: make(chan struct{}, 1)} }

// Want says which values are used from now on.
func (w *Wanted) Want(refs []compute.SecretRef) {
	w.mu.Lock()
	for _, ref := range refs {
		if !slices.Contains(w.refs, ref) {
			w.fresh = append(w.fresh, ref)
		}
	}
	w.refs = slices.Clone(refs)
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Changed says that Take has news.
func (w *Wanted) Changed() <-chan struct{} { return w.changed }

// Take returns what is wanted, and which of it has come to be since Take was called last. Those must be told, even those
// that had been wanted and told before: whoever ceased to want a value has forgotten it.
func (w *Wanted) Take() (refs, fresh []compute.SecretRef) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh = slices.DeleteFunc(w.fresh, func(ref compute.SecretRef) bool { return !slices.Contains(w.refs, ref) })
	w.fresh = nil
	return w.refs, fresh
}
