package intake

import (
	"maps"
	"strconv"

	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
)

// etcdSource is the one source of a datastore whose revisions count all writes of all kinds.
const etcdSource = "etcd"

// progress keeps account of how far each kind has been followed.
type progress struct {
	perKind bool
	reached map[string]uint64 // by kind
	synced  map[string]bool   // kinds whose first listing is in

	kubernetes []string         // kinds that come from Kubernetes beside the datastore; each is a source of its own
	told       map[string]point // how far each of them is
}

// point is how far a kind of Kubernetes is. Revisions that only a listing or a bookmark has told are not among those seen:
// no other replica is sure to reach just those.
type point struct{ seen, reached uint64 }

func newProgress(opts Options) progress {
	p := progress{perKind: opts.SourcePerKind, reached: map[string]uint64{}, synced: map[string]bool{}, told: map[string]point{}}
	if opts.Services != nil {
		p.kubernetes = append(p.kubernetes, serviceKind, sliceKind)
	}
	if opts.Policies != nil {
		p.kubernetes = append(p.kubernetes, kubernetes.ClusterKinds()...)
	}
	return p
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

// tell notes how far a kind of Kubernetes is.
func (p *progress) tell(kind string, seen, reached uint64, inSync bool) {
	if inSync {
		p.synced[kind] = true
	}
	was := p.told[kind]
	p.told[kind] = point{max(was.seen, seen), max(was.reached, reached, seen)}
}

func (p *progress) inSync() bool {
	for _, list := range [][]string{kinds, p.kubernetes} {
		for _, kind := range list {
			if !p.synced[kind] {
				return false
			}
		}
	}
	return true
}

// state returns the progress of all kinds together.
func (p *progress) state() Progress {
	s := p.ofDatastore()
	if len(p.told) > 0 && p.perKind { // there the two are one
		s.Floor = maps.Clone(s.Floor)
	}
	for kind, at := range p.told {
		s.Floor[kind] = at.reached
		if at.seen > 0 {
			s.Checkpoint[kind] = at.seen
		}
	}
	return s
}

func (p *progress) ofDatastore() Progress {
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
