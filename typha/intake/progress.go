package intake

import (
	"maps"
	"strconv"

	"github.com/muslin-net/muslin/api/view"
)

// etcdSource is the one source of a datastore whose revisions count all writes of all kinds.
const etcdSource = "etcd"

// progress keeps account of how far each kind has been followed.
type progress struct {
	perKind bool
	reached map[string]uint64 // by kind
	synced  map[string]bool   // kinds whose first listing is in
}

// moved notes that a kind is complete up to a revision. Revisions that are not numbers say nothing.
func (p *progress) moved(kind, revision string, inSync bool) {
	if inSync {
		p.synced[kind] = true
	}
	if n, err := strconv.ParseUint(revision, 10, 64); err == nil {
		p.reached[kind] = max(p.reached[kind], n)
	}
}

func (p *progress) inSync() bool {
	for _, kind := range kinds {
		if !p.synced[kind] {
			return false
		}
	}
	return true
}

// state returns the progress of all kinds together.
func (p *progress) state() Progress {
	s := Progress{InSync: p.inSync()}
	if p.perKind {
		s.Checkpoint = maps.Clone(p.reached)
		s.Floor = s.Checkpoint
		return s
	}
	var highest, lowest uint64
	for i, kind := range kinds {
		highest = max(highest, p.reached[kind])
		if lowest = min(lowest, p.reached[kind]); i == 0 {
			lowest = p.reached[kind]
		}
	}
	s.Checkpoint = view.Checkpoint{etcdSource: highest}
	s.Floor = view.Checkpoint{etcdSource: lowest}
	return s
}
