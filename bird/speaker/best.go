package speaker

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"github.com/muslin-net/muslin/internal/prefixes"
)

// Best is the outcome of path selection for one prefix; no paths means that the prefix is gone.
type Best struct {
	Prefix  netip.Prefix
	Paths   []Path
	Version uint64
}

// bestTable holds the best paths, each with the version of its last change. A reader is nothing but the version that it has
// reached, so a slow reader costs no memory and is never told of a state that is over.
//
// Paths over next hops that felix calls dead are kept back here at once; the engine chooses others a moment later.
type bestTable struct {
	mu      sync.Mutex // guards the following
	entries prefixes.Map[bestEntry]
	last    *pathList // that was given an entry last: prefixes in a row mostly share theirs
	log     []logged  // by version; an entry is current if its prefix still has that version
	version uint64
	oldest  uint64 // removals before this version are forgotten
	live    int    // entries with paths for readers
	most    int    // of these there were at once, of late
	removed int    // entries that the engine has no paths for
	kept    int    // how many of these are remembered, or most if that is more
	dead    map[netip.Addr]struct{}
	cuts    cuts
	detours func() // called when the engine must be told of another unreachable next hop; must not block
	fixed   fixed
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// bestEntry is small, since there may be a hundred thousand.
type bestEntry struct {
	version uint64
	all     *pathList // as the engine has it
	live    *pathList // without those over dead next hops; what readers see
}

// pathList is the paths of many prefixes; nil are none. It never changes.
type pathList struct{ paths []Path }

func (l *pathList) list() []Path {
	if l == nil {
		return nil
	}
	return l.paths
}

// shared is a list in memory once, as far as it is the last one again.
func (t *bestTable) shared(paths []Path) *pathList {
	if len(paths) == 0 {
		return nil
	}
	if t.last == nil || !sharePaths(t.last.paths, paths) {
		t.last = &pathList{paths}
	}
	return t.last
}

type logged struct {
	version uint64
	prefix  netip.Prefix
}

// keptRemovals is how many removals are remembered, at least, for readers that come back. After more prefixes it is as many
// as there were: a reader that is late when all of them go at once need not begin anew, and the memory was in use before.
const keptRemovals = 4096

func newBestTable(kept int) *bestTable {
	return &bestTable{kept: kept, dead: map[netip.Addr]struct{}{}, cuts: cuts{}, detours: func() {}}
}

// set makes paths the best ones of prefix.
func (t *bestTable) set(prefix netip.Prefix, paths []Path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(prefix, t.fixed.over(prefix, paths))
}

// put is set for what readers are to see. Whoever calls holds mu.
func (t *bestTable) put(prefix netip.Prefix, paths []Path) {
	e, there := t.entries.Get(prefix)
	if !there {
		if len(paths) == 0 {
			return
		}
		t.removed++
	}
	if e.all == nil {
		t.removed--
	}
	if e.all = t.shared(paths); e.all == nil {
		t.removed++
	}
	t.publish(prefix, e)
	t.compact()
}

// publish records an entry, and gives it a new version if readers see a difference. One that nobody ever saw is none.
func (t *bestTable) publish(prefix netip.Prefix, e bestEntry) {
	live := e.all
	if slices.ContainsFunc(live.list(), t.hides) {
		live = t.shared(slices.DeleteFunc(slices.Clone(live.list()), t.hides))
	}
	was := e.live
	e.live = live // of equal lists those that are shared most
	if live == was || slices.EqualFunc(live.list(), was.list(), samePath) {
		if e.all == nil && e.version == 0 {
			t.entries.Delete(prefix)
			t.removed--
			return
		}
		t.entries.Set(prefix, e)
		return
	}
	if was == nil {
		t.live++
		t.most = max(t.most, t.live)
	}
	if live == nil {
		t.live--
	}
	t.version++
	e.version = t.version
	t.entries.Set(prefix, e)
	t.log = append(t.log, logged{t.version, prefix})
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// sharePaths tells whether two lists are one in memory.
func sharePaths(a, b []Path) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// hides tells whether readers must not see a path.
func (t *bestTable) hides(p Path) bool {
	if _, dead := t.dead[p.NextHop]; dead {
		return true
	}
	hidden, news := t.cuts.hide(&p)
	if news {
		t.detours()
	}
	return hidden
}

func samePath(a, b Path) bool {
	return a.NextHop == b.NextHop && a.Peer == b.Peer && a.Preference == b.Preference && a.MED == b.MED &&
		a.Origin == b.Origin && a.Stale == b.Stale && slices.Equal(a.ASPath, b.ASPath) && slices.Equal(a.Communities, b.Communities)
}

// setReachable records what felix says of a next hop, and tells whether that is news.
func (t *bestTable) setReachable(nextHop netip.Addr, reachable bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, dead := t.dead[nextHop]; dead == !reachable {
		return false
	}
	if reachable {
		delete(t.dead, nextHop)
	} else {
		t.dead[nextHop] = struct{}{}
	}
	for prefix, e := range t.entries.All() {
		if slices.ContainsFunc(e.all.list(), func(p Path) bool { return p.NextHop == nextHop }) {
			t.publish(prefix, e)
		}
	}
	t.compact()
	return true
}

// unreachable lists the next hops that are dead, or lost peers, sorted.
func (t *bestTable) unreachable() []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]netip.Addr, 0, len(t.dead))
	for a := range t.dead {
		out = append(out, a)
	}
	for a, c := range t.cuts {
		if _, dead := t.dead[a]; c.detour && !dead {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// since returns at most limit changes after a version, oldest first, each prefix once with its present value, the channel
// that is closed at the next change, and the version before which removals are forgotten. Fewer than limit means that there
// are no more.
func (t *bestTable) since(version uint64, limit int) ([]Best, <-chan struct{}, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, _ := slices.BinarySearchFunc(t.log, version+1, func(l logged, v uint64) int { return cmp.Compare(l.version, v) })
	var out []Best
	for ; at < len(t.log) && len(out) < limit; at++ {
		l := t.log[at]
		if e, there := t.entries.Get(l.prefix); there && e.version == l.version {
			out = append(out, Best{l.prefix, e.live.list(), e.version})
		}
	}
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return out, t.changed, t.oldest
}

// compact drops outdated log entries once they are half of the log, and the oldest removals once there are too many.
func (t *bestTable) compact() {
	// A walk over all pays only after changes in proportion to all.
	full := t.removed >= t.kept+max(t.kept, t.most)+t.entries.Len()/4
	if !full && len(t.log) < 2*t.entries.Len()+t.kept {
		return
	}
	forget := 0
	if full {
		t.most = max(t.live, t.most/2)
		forget = t.removed - max(t.kept, t.most)
	}
	t.log = slices.DeleteFunc(t.log, func(l logged) bool {
		e, there := t.entries.Get(l.prefix)
		if !there || e.version != l.version {
			return true
		}
		if e.all == nil && forget > 0 {
			forget--
			t.removed--
			t.oldest = l.version
			t.entries.Delete(l.prefix)
			return true
		}
		return false
	})
	if cap(t.log) > 4*len(t.log)+t.kept {
		t.log = slices.Clone(t.log)
	}
}

// size is the number of prefixes that have a path.
func (t *bestTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live
}
