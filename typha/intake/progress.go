package intake

import (
	"maps"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
)

// etcdSource is the one source of a datastore whose revisions count all writes of all kinds.
const etcdSource = "etcd"

// progress keeps account of how far each kind has been followed.
type progress struct {
	perKind bool
	reached map[string]uint64 // by kind
	seen    map[string]uint64 // by kind, if perKind
	synced  map[string]bool   // kinds whose first listing is in

	kubernetes []string         // kinds that come from Kubernetes beside the datastore; each is a source of its own
	told       map[string]point // how far each of them is
}

// point is how far a kind of Kubernetes is. Revisions that only a listing or a bookmark has told are not among those seen:
// no other replica is sure to reach just those.
type point struct{ seen, reached uint64 }

func newProgress(opts Options) progress {
	p := progress{perKind: opts.SourcePerKind, reached: map[string]uint64{}, seen: map[string]uint64{}, synced: map[string]bool{}, told: map[string]point{}}
	if opts.Services != nil {
		p.kubernetes = append(p.kubernetes, serviceKind, sliceKind)
	}
	if opts.Pods != nil {
		p.kubernetes = append(p.kubernetes, kubernetes.KindPod, kubernetes.KindNamespace)
	}
	if opts.Policies != nil {
		p.kubernetes = append(p.kubernetes, kubernetes.ClusterKinds()...)
	}
	return p
}

// moved notes that a kind is complete up to a revision, and what of it has been seen. A kind that is made of several resources
// has a revision of each, and is a source for each. Revisions that are not numbers say nothing.
func (p *progress) moved(kind, revision string, seen datastore.Seen, inSync bool) {
	if inSync {
		p.synced[kind] = true
	}
	advance(p.reached, kind, revision)
	if p.perKind {
		advance(p.seen, kind, string(seen))
	}
}

func advance(to map[string]uint64, kind, revision string) {
	source := kind
	for i, part := range strings.Split(revision, "/") {
		if i > 0 {
			source = kind + "/" + strconv.Itoa(i)
		}
		if n, err := strconv.ParseUint(part, 10, 64); err == nil && n > 0 {
			to[source] = max(to[source], n)
		}
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
		s.Checkpoint, s.Floor = maps.Clone(p.seen), maps.Clone(p.reached)
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
