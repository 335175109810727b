package client

import (
	"context"
	"slices"

	"github.com/muslin-net/muslin/api/view"
)

// Handler takes what Run receives.
type Handler interface {
	// OnBatch takes a whole batch: all of it is to be committed, or nothing. Calls come from one goroutine, in order; the
	// stream waits while one runs, so it should only take note. When the batch is programmed, and everything before it,
	// the handler calls the batch's Applied, from any goroutine.
	OnBatch(Batch)
	// OnQuery answers a question that an operator asked about this node: it calls reply once for each part of the answer
	// and returns. Calls come from many goroutines. ctx ends when the asker no longer waits. ErrUnserved tells that this
	// process does not answer such questions.
	OnQuery(ctx context.Context, q Question, reply func(part []byte) error) error
}

// Batch is one step of a view, as a difference to the step before. The first one after the start of Run is a difference
// to nothing.
type Batch struct {
	view.Batch
	// Saved is true for the batch that Run makes from the saved view before it connects. Its InSync tells that the view
	// was whole when it was saved.
	Saved bool

	applied func([]Failure)
}

// Applied tells that this batch and all before it are programmed, but for the failures. Calling it for a batch before
// the latest applied one does nothing.
func (b Batch) Applied(failures ...Failure) { b.applied(failures) }

// Failure is an item that could not be programmed.
type Failure struct {
	Key    view.Key
	Reason string // what went wrong and what to do, in one line
}

// ledger remembers what was handed to the handler and what of it was applied.
type ledger struct {
	handed  int                 // number of the last batch handed over, from 1
	applied int                 // number of the last batch applied
	waiting []step              // handed over and not applied, oldest first
	items   map[view.Key]*entry // the view as it was applied last
	point   view.Checkpoint     // its checkpoint
	inSync  bool                // it is a whole view
}

// entry is what is held of an item at a version: not the item itself, which is its receiver's by then. It never changes, and those
// who hold the same view share it.
type entry struct {
	version view.Version
	// raw is the item as typha sent it, nil if it was put together from parts or changes. The saved view keeps it, and so
	// what a later version of this software will understand of it.
	raw []byte
	set *view.IPSet // to which changes apply; nil if the item is no set
}

// put is an item that comes, beside what will be held of it.
type put struct {
	*entry
	item view.Item
}

// step is what a batch changes.
type step struct {
	number int
	puts   map[view.Key]put
	drops  []view.Key
	point  view.Checkpoint
	inSync bool

	deltas   map[view.Key][]view.IPSetDelta // how sets in puts came about, where that was by deltas alone
	skipped  uint64                         // items of unknown kinds, left out
	failures []Failure                      // items that cannot be read, left out
}

func newLedger() ledger { return ledger{items: map[view.Key]*entry{}} }

// change makes what is held before a step what is held after it.
func (s step) change(items map[view.Key]*entry) {
	for _, k := range s.drops {
		delete(items, k)
	}
	for k, p := range s.puts {
		items[k] = p.entry
	}
}

// hand notes a step as handed over and returns its number.
func (l *ledger) hand(s step) int {
	l.handed++
	s.number = l.handed
	l.waiting = append(l.waiting, s)
	return s.number
}

// apply makes all steps up to a number part of the applied view. It returns false if nothing changed by it.
func (l *ledger) apply(number int) bool {
	if number <= l.applied {
		return false
	}
	due := 0
	for _, s := range l.waiting {
		if s.number > number {
			break
		}
		s.change(l.items)
		l.point, l.inSync = s.point, s.inSync || l.inSync
		due++
	}
	l.waiting = slices.Delete(l.waiting, 0, due) // and with them what they brought
	l.applied = number
	return true
}
