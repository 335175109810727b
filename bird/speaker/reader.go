package speaker

import (
	"errors"
	"slices"
)

// ErrBehind means that a reader has missed removals that are forgotten by now. It must begin anew.
var ErrBehind = errors.New("too far behind")

// BestReader follows the best paths. It is nothing but a place in their history, so a slow one costs no memory and is never
// told of a state that is over. It must not be used by several goroutines at once.
type BestReader struct {
	table   *bestTable
	version uint64 // all up to it is read
	base    uint64 // what was gone by then need not be told
	resumed bool
}

// ReadBest begins to read: after a version that was read before, or from the beginning if removals since then are forgotten.
func (s *Speaker) ReadBest(after uint64) *BestReader { return s.best.read(after) }

// read takes up a version that is not of this table, such as 0, as the beginning.
func (t *bestTable) read(after uint64) *BestReader {
	t.mu.Lock()
	defer t.mu.Unlock()
	if after > 0 && after >= t.oldest && after <= t.version {
		return &BestReader{table: t, version: after, base: after, resumed: true}
	}
	return &BestReader{table: t, base: t.version}
}

// Resumed tells whether the reader goes on from the version it was begun with.
func (r *BestReader) Resumed() bool { return r.resumed }

// Version is how far it has come.
func (r *BestReader) Version() uint64 { return r.version }

// Next returns at most limit changes, oldest first, each prefix once with its present value. The channel is closed at the
// next change; it is nil if there is more to read at once.
func (r *BestReader) Next(limit int) ([]Best, <-chan struct{}, error) {
	list, changed, oldest := r.table.since(r.version, limit)
	if oldest > max(r.version, r.base) {
		return nil, nil, ErrBehind
	}
	if len(list) == limit {
		changed = nil
	}
	if len(list) > 0 {
		r.version = list[len(list)-1].Version
	}
	return slices.DeleteFunc(list, func(b Best) bool { return len(b.Paths) == 0 && b.Version <= r.base }), changed, nil
}
