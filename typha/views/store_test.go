package views

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/thorough"
)

func policy(id string, n int) *Entry {
	return NewEntry(view.Policy{ID: id, Tier: fmt.Sprint(n)})
}

func route(n, port int) *Entry {
	return NewEntry(view.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n)}), 24), Node: "n", Pool: fmt.Sprint(port)})
}

func member(n int) view.Member {
	return view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 32)}
}

// reader applies cuts as a client does.
type reader struct {
	scope Scope
	sub   *Subscription
	has   map[view.Key]view.Version
	sets  map[view.Key][]view.Member
	woken int
}

func subscribe(s *Store, scope Scope, have map[view.Key]view.Version) *reader {
	r := &reader{scope: scope, has: maps.Clone(have), sets: map[view.Key][]view.Member{}}
	if r.has == nil {
		r.has = map[view.Key]view.Version{}
	}
	r.sub = s.Subscribe(scope, have, func() { r.woken++ })
	return r
}

// resume has the reader come again, and tell by digests what it has.
func (r *reader) resume(s *Store) (differing []uint8) {
	var digests view.Digests
	for k, v := range r.has {
		digests.Add(k, v)
	}
	r.sub, differing = s.Resume(r.scope, &digests, func() { r.woken++ })
	return differing
}

// name tells what the reader has in the parts that it is asked about.
func (r *reader) name(differing []uint8) {
	if len(differing) == 0 {
		return
	}
	have := maps.Clone(r.has)
	maps.DeleteFunc(have, func(k view.Key, _ view.Version) bool { return !slices.Contains(differing, view.PartOf(k)) })
	r.sub.Named(have)
}

// take applies the next cut and returns it.
func (r *reader) take(t *testing.T) (Cut, bool) {
	cut, ok := r.sub.Next()
	updates := cut.All()
	for i, e := range updates {
		require.True(t, i == 0 || CompareKeys(updates[i-1].Key, e.Key) < 0, "updates are in order, each once")
		switch it := e.Item().(type) {
		case view.IPSetDelta:
			require.Equal(t, r.has[e.Key], it.From)
			members := slices.DeleteFunc(slices.Clone(r.sets[e.Key]), func(m view.Member) bool { return slices.Contains(it.Removed, m) })
			members = append(members, it.Added...)
			slices.SortFunc(members, CompareMembers)
			r.sets[e.Key] = members
			require.Equal(t, e.Version, view.VersionOf(view.IPSet{ID: it.ID, Type: view.SetNet, Members: members}))
		case view.IPSet:
			r.sets[e.Key] = it.Members
		}
		r.has[e.Key] = e.Version
	}
	for i, k := range cut.Removes {
		require.True(t, i == 0 || cut.Removes[i-1].Kind >= k.Kind, "removes are in order")
		delete(r.has, k)
		delete(r.sets, k)
	}
	return cut, ok
}

func versionsOf(s *Store, scope Scope) map[view.Key]view.Version {
	out := map[view.Key]view.Version{}
	for k, e := range s.View(scope) {
		out[k] = e.Version
	}
	return out
}

// model makes random changes and keeps what they must come to.
type model struct {
	r     *rand.Rand
	store *Store
	sets  map[int]*Entry
	mine  map[Scope]map[view.Key]*Entry
}

var scopes = []Scope{{"a", NodeView}, {"b", NodeView}, {"a", BGPView}}

// commit changes a few random things at once.
func (m *model) commit(checkpoint uint64) {
	c := Change{Scopes: map[Scope]*Delta{}, InSync: true, Checkpoint: view.Checkpoint{"etcd": checkpoint}}
	for _, scope := range scopes {
		if m.mine[scope] == nil {
			m.mine[scope] = map[view.Key]*Entry{}
		}
		touched := map[view.Key]*Entry{}
		for range m.r.IntN(4) {
			e := policy(fmt.Sprint("p", m.r.IntN(6)), m.r.IntN(3))
			touched[e.Key] = e
			if m.r.IntN(3) == 0 {
				touched[e.Key] = nil
			}
		}
		if n := m.r.IntN(3); m.r.IntN(2) == 0 {
			e := m.changeSet(n)
			touched[e.Key] = e
			if m.r.IntN(6) == 0 {
				touched[e.Key] = nil
			}
		}
		d := &Delta{}
		for k, e := range touched {
			if e != nil {
				d.Put = append(d.Put, e)
				m.mine[scope][k] = e
			} else {
				d.Drop = append(d.Drop, k)
				delete(m.mine[scope], k)
			}
		}
		c.Scopes[scope] = d
	}
	for kind := range c.Common {
		touched := map[view.Key]*Entry{}
		for range m.r.IntN(3) {
			e := route(m.r.IntN(200), m.r.IntN(3))
			touched[e.Key] = e
			if m.r.IntN(2) == 0 {
				touched[e.Key] = nil
			}
		}
		for k, e := range touched {
			if e != nil {
				c.Common[kind].Put = append(c.Common[kind].Put, e)
			} else {
				c.Common[kind].Drop = append(c.Common[kind].Drop, k)
			}
			for _, scope := range scopes {
				if int(scope.View) != kind {
					continue
				}
				if e != nil {
					m.mine[scope][k] = e
				} else {
					delete(m.mine[scope], k)
				}
			}
		}
	}
	m.store.Commit(c)
}

// changeSet adds or removes a member of a set.
func (m *model) changeSet(n int) *Entry {
	var members, added, removed []view.Member
	version := view.EmptySet(view.SetNet)
	prev := m.sets[n]
	if prev != nil {
		members, version = slices.Clone(prev.Item().(view.IPSet).Members), prev.Version
	}
	if x := member(m.r.IntN(12)); slices.Contains(members, x) {
		members = slices.DeleteFunc(members, func(y view.Member) bool { return x == y })
		removed, version = append(removed, x), version.RemoveMember(x)
	} else {
		members = append(members, x)
		added, version = append(added, x), version.AddMember(x)
	}
	slices.SortFunc(members, CompareMembers)
	m.sets[n] = NewSet(view.IPSet{ID: fmt.Sprint("s", n), Type: view.SetNet, Members: members}, version, prev, added, removed)
	return m.sets[n]
}

// TestAnyInterleavingEndsAtTheView has clients that take cuts, reconnect with what they have, and ask for items again at
// random moments. After a cut a client has exactly the view as of then.
func TestAnyInterleavingEndsAtTheView(t *testing.T) {
	m := &model{r: rand.New(rand.NewPCG(1, 2)), store: NewStore(), sets: map[int]*Entry{}, mine: map[Scope]map[view.Key]*Entry{}}
	var readers []*reader
	for range 3 {
		for _, scope := range scopes {
			readers = append(readers, subscribe(m.store, scope, nil))
		}
	}
	for i := range thorough.Rounds(400, 1500) {
		m.commit(uint64(i + 1))
		r := readers[m.r.IntN(len(readers))]
		switch m.r.IntN(20) {
		case 0:
			r.sub.Close()
			sets := r.sets
			*r = *subscribe(m.store, r.scope, r.has)
			r.sets = sets
		case 3:
			r.sub.Close()
			differing := r.resume(m.store)
			for range m.r.IntN(3) { // what changes until the client has said what it has
				m.commit(uint64(i + 1))
			}
			r.name(differing)
		case 1:
			for k := range r.has {
				r.sub.Resend(k, view.Key{Kind: view.KindPolicy, ID: "never was"})
				break
			}
		case 2:
			r.sub.Resend()
			r.has, r.sets = map[view.Key]view.Version{}, map[view.Key][]view.Member{}
		}
		cut, ok := r.take(t)
		require.True(t, ok)
		require.True(t, cut.InSync)
		require.Equal(t, uint64(i+1), cut.Checkpoint["etcd"])
		want := map[view.Key]view.Version{}
		for k, e := range m.mine[r.scope] {
			want[k] = e.Version
		}
		require.True(t, maps.Equal(want, versionsOf(m.store, r.scope)))
		require.True(t, maps.Equal(want, r.has), "want %v\nhave %v", want, r.has)
		for k, members := range r.sets {
			require.True(t, slices.Equal(m.mine[r.scope][k].Item().(view.IPSet).Members, members))
		}
	}
	for _, c := range m.store.common {
		require.Less(t, c.gone, 200, "removals that all clients know are forgotten")
	}
}

func TestResumeSendsOnlyDifferences(t *testing.T) {
	s, scope := NewStore(), Scope{"a", NodeView}
	same, old, fresh := policy("same", 1), policy("changed", 1), policy("changed", 2)
	s.Commit(Change{
		InSync: true,
		Common: [viewKinds]Delta{NodeView: {Put: []*Entry{route(1, 1), route(2, 2)}}},
		Scopes: map[Scope]*Delta{scope: {Put: []*Entry{same, fresh, policy("new", 1)}}},
	})
	gone := view.Key{Kind: view.KindPolicy, ID: "gone"}
	sub := s.Subscribe(scope, map[view.Key]view.Version{
		same.Key: same.Version, old.Key: old.Version, gone: {1}, route(1, 1).Key: route(1, 1).Version, route(2, 1).Key: route(2, 1).Version,
	}, func() {})
	cut, ok := sub.Next()
	require.True(t, ok)
	var ids []string
	for _, e := range cut.All() {
		ids = append(ids, e.Key.ID)
	}
	require.Equal(t, []string{"changed", "new", "10.0.2.0/24@n"}, ids)
	require.Equal(t, []view.Key{gone}, cut.Removes)
	_, ok = sub.Next()
	require.False(t, ok)
}

// A client that says by digests what it has is asked about the parts only that differ, and sent nothing of the others.
func TestResumeByDigests(t *testing.T) {
	s, scope := NewStore(), Scope{"a", NodeView}
	c := Change{InSync: true, Checkpoint: view.Checkpoint{"etcd": 1}, Scopes: map[Scope]*Delta{scope: {}}}
	for n := range 1000 {
		c.Scopes[scope].Put = append(c.Scopes[scope].Put, policy(fmt.Sprint(n), 1))
		c.Common[NodeView].Put = append(c.Common[NodeView].Put, route(n, 1))
	}
	s.Commit(c)
	r := subscribe(s, scope, nil)
	r.take(t)
	r.sub.Close()

	require.Empty(t, r.resume(s), "it has all")
	cut, ok := r.take(t)
	require.True(t, ok, "it learns where it is, and that it is in sync")
	require.Equal(t, Cut{Checkpoint: view.Checkpoint{"etcd": 1}, InSync: true}, cut)
	r.sub.Close()

	changed, gone, other := policy("7", 2), policy("8", 1).Key, route(9, 2)
	s.Commit(Change{
		Scopes: map[Scope]*Delta{scope: {Put: []*Entry{changed}, Drop: []view.Key{gone}}},
		Common: [viewKinds]Delta{NodeView: {Put: []*Entry{other}}},
	})
	differing := r.resume(s)
	require.ElementsMatch(t, []uint8{view.PartOf(changed.Key), view.PartOf(gone), view.PartOf(other.Key)}, differing)
	r.name(differing)
	cut, ok = r.take(t)
	require.True(t, ok)
	require.Equal(t, []*Entry{changed, other}, cut.Updates)
	require.Equal(t, []view.Key{gone}, cut.Removes)
	require.Equal(t, versionsOf(s, scope), r.has)
}

// One that comes before anything is known is asked for all that it has, and told nothing until then.
func TestResumeByDigestsBeforeInSync(t *testing.T) {
	s, scope := NewStore(), Scope{"a", NodeView}
	r := subscribe(s, scope, map[view.Key]view.Version{policy("p", 1).Key: policy("p", 1).Version})
	r.sub.Close()
	differing := r.resume(s)
	require.Equal(t, []uint8{view.PartOf(policy("p", 1).Key)}, differing)
	r.name(differing)
	_, ok := r.take(t)
	require.False(t, ok)
	s.Commit(Change{Scopes: map[Scope]*Delta{scope: {Put: []*Entry{policy("p", 1), policy("q", 1)}}}, InSync: true})
	cut, ok := r.take(t)
	require.True(t, ok)
	require.Len(t, cut.Updates, 1)
	require.Empty(t, cut.Removes)
}

func TestNothingBeforeInSync(t *testing.T) {
	s, scope := NewStore(), Scope{"a", NodeView}
	r := subscribe(s, scope, map[view.Key]view.Version{policy("p", 1).Key: policy("p", 1).Version})
	s.Commit(Change{Scopes: map[Scope]*Delta{scope: {Put: []*Entry{policy("q", 1)}}}})
	_, ok := r.take(t)
	require.False(t, ok, "a client that resumes must not be told to remove what is not read yet")
	require.Zero(t, r.woken)
	s.Commit(Change{Scopes: map[Scope]*Delta{scope: {Put: []*Entry{policy("p", 1)}}}, InSync: true})
	require.Equal(t, 1, r.woken)
	cut, ok := r.take(t)
	require.True(t, ok)
	require.Len(t, cut.Updates, 1)
	require.Empty(t, cut.Removes)
}

func TestWakes(t *testing.T) {
	s := NewStore()
	s.Commit(Change{InSync: true})
	a, b := subscribe(s, Scope{"a", NodeView}, nil), subscribe(s, Scope{"b", NodeView}, nil)
	other := subscribe(s, Scope{"a", BGPView}, nil)
	for _, r := range []*reader{a, b, other} {
		r.take(t)
	}
	for range 3 {
		s.Commit(Change{Scopes: map[Scope]*Delta{a.scope: {Put: []*Entry{policy("p", 1)}}}})
	}
	require.Equal(t, []int{1, 0, 0}, []int{a.woken, b.woken, other.woken}, "once until Next, and nobody else")
	a.take(t)
	s.Commit(Change{Common: [viewKinds]Delta{NodeView: {Put: []*Entry{route(1, 1)}}}})
	require.Equal(t, []int{2, 1, 0}, []int{a.woken, b.woken, other.woken}, "all of the kind")
	b.take(t)
	s.Commit(Change{Common: [viewKinds]Delta{NodeView: {Put: []*Entry{route(1, 1)}, Drop: []view.Key{route(9, 1).Key}}}})
	require.Equal(t, 1, b.woken, "what is the same is no change")
	s.Commit(Change{Checkpoint: view.Checkpoint{"etcd": 7}, Floor: view.Checkpoint{"etcd": 5}})
	require.Equal(t, 0, other.woken, "a checkpoint alone wakes nobody")
	cut, ok := other.take(t)
	require.True(t, ok, "but is there for who asks")
	require.Equal(t, uint64(7), cut.Checkpoint["etcd"])
	require.True(t, s.Reached(view.Checkpoint{"etcd": 5}))
	require.False(t, s.Reached(view.Checkpoint{"etcd": 6}), "not everything up to there is in")
	a.sub.Close()
	a.sub.Close()
	s.Commit(Change{Common: [viewKinds]Delta{NodeView: {Put: []*Entry{route(2, 1)}}}})
	require.Equal(t, 2, a.woken)
}

func TestSetDeltas(t *testing.T) {
	s, scope := NewStore(), Scope{"a", NodeView}
	var entry *Entry
	put := func(members int, added, removed []view.Member) {
		set := view.IPSet{ID: "s", Type: view.SetNet}
		for i := range members {
			set.Members = append(set.Members, member(i))
		}
		entry = NewSet(set, view.VersionOf(set), entry, added, removed)
		s.Commit(Change{Scopes: map[Scope]*Delta{scope: {Put: []*Entry{entry}}}, InSync: true})
	}
	put(100, nil, nil)
	r, slow := subscribe(s, scope, nil), subscribe(s, scope, nil)
	cut, _ := r.take(t)
	require.IsType(t, view.IPSet{}, cut.Updates[0].Item(), "whole for who has nothing")
	slow.take(t)
	put(101, []view.Member{member(100)}, nil)
	cut, _ = r.take(t)
	require.IsType(t, view.IPSetDelta{}, cut.Updates[0].Item())
	put(100, nil, []view.Member{member(100)})
	cut, ok := slow.take(t)
	require.True(t, !ok || len(cut.Updates) == 0, "it came back to what the client has: %v", cut)
	for i := range maxSteps + 2 {
		put(101+i, []view.Member{member(100 + i)}, nil)
	}
	cut, _ = r.take(t)
	require.IsType(t, view.IPSet{}, cut.Updates[0].Item(), "too far behind for a delta")
	// Two clients at the same version share the delta and thereby its bytes.
	slow.take(t)
	put(119, []view.Member{member(118)}, nil)
	one, _ := r.take(t)
	two, _ := slow.take(t)
	require.IsType(t, view.IPSetDelta{}, one.Updates[0].Item())
	require.Same(t, one.Updates[0], two.Updates[0])
	var most []view.Member
	for i := range 118 {
		most = append(most, member(i+1))
	}
	put(1, nil, most)
	cut, _ = r.take(t)
	require.IsType(t, view.IPSet{}, cut.Updates[0].Item(), "a delta that is no smaller is not worth it")
}

func TestFrameIsEncodedOnce(t *testing.T) {
	calls := 0
	encode := func(*Entry) []byte { calls++; return []byte{1} }
	e := policy("p", 1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { e.Frame(func(*Entry) []byte { return []byte{1} }) })
	}
	wg.Wait()
	require.Equal(t, []byte{1}, e.Frame(encode))
	require.Zero(t, calls)
	own := NewEntry(view.WorkloadEndpoint{Interface: "cali1"})
	own.Frame(encode)
	own.Frame(encode)
	require.Equal(t, 2, calls, "one node alone is sent an endpoint: its bytes are not kept")
}

// TestNeverHalfABatch commits pairs of items, one common and one scoped, that always carry the same number, while many
// clients take cuts. None may ever see a pair apart.
func TestNeverHalfABatch(t *testing.T) {
	s := NewStore()
	names := []string{"a", "b", "c", "d"}
	commit := func(n int) {
		c := Change{InSync: true, Scopes: map[Scope]*Delta{}}
		c.Common[NodeView].Put = []*Entry{route(1, n)}
		for _, name := range names {
			c.Scopes[Scope{name, NodeView}] = &Delta{Put: []*Entry{policy("pair", n)}}
		}
		s.Commit(c)
	}
	commit(0)
	const rounds = 500
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			wake := make(chan struct{}, 1)
			sub := s.Subscribe(Scope{names[i%len(names)], NodeView}, nil, func() {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
			defer sub.Close()
			left, right := "", ""
			for {
				cut, _ := sub.Next()
				for _, e := range cut.All() {
					switch it := e.Item().(type) {
					case view.Route:
						left = it.Pool
					case view.Policy:
						right = it.Tier
					}
				}
				if left != right {
					t.Errorf("half a batch: %s and %s", left, right)
					return
				}
				if left == fmt.Sprint(rounds) {
					return
				}
				<-wake
			}
		})
	}
	for n := range rounds {
		commit(n + 1)
	}
	wg.Wait()
}

func TestExplain(t *testing.T) {
	s, scope := NewStore(), Scope{"a", NodeView}
	set := view.Key{Kind: view.KindIPSet, ID: "s:1"}
	s.Commit(Change{
		InSync: true,
		Common: [viewKinds]Delta{NodeView: {Put: []*Entry{route(1, 1)}}},
		Scopes: map[Scope]*Delta{scope: {Put: []*Entry{
			NewEntry(view.IPSet{ID: "s:1", Type: view.SetNet}),
			NewEntry(view.Policy{ID: "np/x/y", Ingress: []view.Rule{{}, {Source: view.Match{NotSets: []string{"s:1"}}}}}),
			NewEntry(view.PolicyList{ID: "l", Tiers: []view.TierPolicies{{Name: "default", Egress: []string{"np/x/y"}}}}),
			NewEntry(view.WorkloadEndpoint{ID: view.EndpointID{Orchestrator: "k8s", Workload: "x/p", Endpoint: "eth0"}, PolicyList: "l"}),
		}}},
	})
	texts := func(k view.Key) (out []string) {
		for _, r := range s.Explain(scope, k) {
			out = append(out, r.Text)
		}
		return out
	}
	require.Equal(t, []string{"ingress rule 2 of the policy"}, texts(set))
	require.Equal(t, []string{"in tier default of the list"}, texts(view.Key{Kind: view.KindPolicy, ID: "np/x/y"}))
	require.Equal(t, []string{"applies to workload endpoint k8s/x/p/eth0"}, texts(view.Key{Kind: view.KindPolicyList, ID: "l"}))
	require.Equal(t, []string{"it belongs to node a"}, texts(view.Key{Kind: view.KindWorkloadEndpoint, ID: "k8s/x/p/eth0"}))
	require.Equal(t, []string{"every NODE view has it"}, texts(route(1, 1).Key))
	require.Empty(t, texts(view.Key{Kind: view.KindPolicy, ID: "none"}))
}
