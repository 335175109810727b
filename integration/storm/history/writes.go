package history

import (
	"sort"
	"sync"
)

// Write is one write of a marked object. A deletion is a write with a mark of its own.
type Write struct {
	Revision uint64 // at which the datastore has it
	Object   string
	Mark     uint64
}

// Writes are what was written, as far as its writer knows: a write of which he was not told that it succeeded is not in it,
// which makes judgement milder and never wrong. It may be used by many goroutines; an object has one writer.
type Writes struct {
	mu sync.RWMutex // guards of
	of map[string][]Write
}

// Add notes a write. Those of one object come in the order of their revisions.
func (w *Writes) Add(one Write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[string][]Write{}
	}
	w.of[one.Object] = append(w.of[one.Object], one)
}

// asOf is the mark of an object's last write up to a revision, 0 if there is none.
func (w *Writes) asOf(object string, revision uint64) uint64 {
	if w == nil {
		return 0
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	list := w.of[object]
	n := sort.Search(len(list), func(i int) bool { return list[i].Revision > revision })
	if n == 0 {
		return 0
	}
	return list[n-1].Mark
}
