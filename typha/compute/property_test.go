package compute

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// versions is what a view holds.
func versions(t *testing.T, store *views.Store, s views.Scope) map[view.Key]view.Version {
	out := map[view.Key]view.Version{}
	for k, e := range store.View(s) {
		if set, ok := e.Item().(view.IPSet); ok { // kept up by difference; all others are hashed when they are made
			require.Equal(t, view.VersionOf(set), e.Version, "%s: the version of %v is not that of its members", s, k)
		}
		out[k] = e.Version
	}
	return out
}

func oracleVersions(v oracleView) map[view.Key]view.Version {
	out := map[view.Key]view.Version{}
	for k, it := range v {
		out[k] = view.VersionOf(it)
	}
	return out
}

// requireEqual compares what a view holds with what it should, and shows where it differs.
func requireEqual(t *testing.T, want oracleView, store *views.Store, s views.Scope, when string) {
	t.Helper()
	got, wanted := versions(t, store, s), oracleVersions(want)
	if maps.Equal(got, wanted) {
		return
	}
	view := store.View(s)
	for k := range wanted {
		if got[k] != wanted[k] {
			var have any
			if e := view[k]; e != nil {
				have = e.Item()
			}
			t.Errorf("%s: %s: %v\n want %+v\n have %+v", when, s, k, want[k], have)
		}
	}
	for k := range got {
		if _, ok := wanted[k]; !ok {
			t.Errorf("%s: %s: %v should not be there: %+v", when, s, k, view[k].Item())
		}
	}
	t.FailNow()
}

// client follows a view through cuts.
type client struct {
	scope views.Scope
	sub   *views.Subscription
	has   map[view.Key]view.Version
	sets  map[view.Key][]view.Member
}

func (c *client) take(t *testing.T) {
	cut, ok := c.sub.Next()
	if !ok {
		return
	}
	require.True(t, slices.IsSortedFunc(cut.All(), func(a, b *views.Entry) int { return int(a.Key.Kind) - int(b.Key.Kind) }))
	require.True(t, slices.IsSortedFunc(cut.Removes, func(a, b view.Key) int { return int(b.Kind) - int(a.Kind) }))
	for _, e := range cut.All() {
		switch it := e.Item().(type) {
		case view.IPSetDelta:
			require.Equal(t, c.has[e.Key], it.From, "a delta must start where the client is")
			require.Equal(t, e.Version, it.To)
			members := slices.DeleteFunc(slices.Clone(c.sets[e.Key]), func(m view.Member) bool { return slices.Contains(it.Removed, m) })
			members = append(members, it.Added...)
			slices.SortFunc(members, views.CompareMembers)
			c.sets[e.Key] = members
		case view.IPSet:
			c.sets[e.Key] = it.Members
		}
		c.has[e.Key] = e.Version
	}
	for _, k := range cut.Removes {
		delete(c.has, k)
		delete(c.sets, k)
	}
}

func (c *client) check(t *testing.T, store *views.Store) {
	t.Helper()
	require.True(t, maps.Equal(versions(t, store, c.scope), c.has), "%s: the client's view is not the store's", c.scope)
	for k, members := range c.sets {
		e := store.Get(c.scope, k)
		require.True(t, slices.Equal(e.Item().(view.IPSet).Members, members), "set %v", k)
	}
}

var seeds = flag.Int("seeds", thorough.Rounds(1, 3), "how many random worlds to go through")

// TestIncrementalIsFromScratch changes a random object thousands of times, in batches of random size. After each batch
// the views must be what a slow oracle says, and now and then what another engine makes of the same objects in another
// order and in other batches. Clients that take cuts at random moments must end with the same.
func TestIncrementalIsFromScratch(t *testing.T) {
	steps := thorough.Rounds(100, 1000) // of about four changes each
	for seed := range *seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(uint64(seed))
			e, store := New(), views.NewStore()
			store.Commit(views.Change{InSync: true})
			var clients []*client
			for _, n := range worldNodes {
				for _, s := range []views.Scope{nodeView(n), bgpView(n)} {
					clients = append(clients, &client{
						scope: s, sub: store.Subscribe(s, nil, func() {}),
						has: map[view.Key]view.Version{}, sets: map[view.Key][]view.Member{},
					})
				}
			}
			for step := range steps {
				for range 1 + w.r.IntN(4)*w.r.IntN(3) {
					w.step(e)
				}
				w.answer(e)
				store.Commit(e.Flush())
				for s, want := range oracleViews(w) {
					requireEqual(t, want, store, s, fmt.Sprintf("step %d", step))
				}
				for _, c := range clients {
					if w.chance(30) {
						c.take(t)
						c.check(t, store)
					}
					if w.chance(2) { // reconnects with what it has
						c.sub.Close()
						c.sub = store.Subscribe(c.scope, maps.Clone(c.has), func() {})
					}
				}
				if step%10 == 0 {
					requireReplica(t, w, store)
				}
			}
			// All gone, all gone: nothing may be left behind.
			for k := range w.objects {
				e.Apply(cache.Change{Key: k})
			}
			for name := range w.services {
				e.SetService(name, nil)
			}
			for name := range w.slices {
				e.SetEndpointSlice(name, nil)
			}
			store.Commit(e.Flush())
			requireEmpty(t, e)
			for _, c := range clients {
				c.take(t)
				require.Empty(t, c.has)
			}
		})
	}
}

// requireReplica brings the same world into another engine, shuffled and in random batches, and compares versions.
func requireReplica(t *testing.T, w *world, store *views.Store) {
	other, otherStore := New(), views.NewStore()
	for _, bring := range w.all() {
		bring(other)
		if w.chance(20) {
			otherStore.Commit(other.Flush())
		}
	}
	w.answer(other)
	otherStore.Commit(other.Flush())
	for _, n := range worldNodes {
		for _, s := range []views.Scope{nodeView(n), bgpView(n)} {
			its := oracleView{}
			for _, e := range otherStore.View(s) {
				its.add(e.Item())
			}
			require.True(t, maps.Equal(oracleVersions(its), versions(t, otherStore, s)), "%s: versions of the replica", s)
			requireEqual(t, its, store, s, "a replica")
		}
	}
}

// requireEmpty checks that an engine without objects holds nothing that costs memory.
func requireEmpty(t *testing.T, e *Engine) {
	t.Helper()
	require.Zero(t, e.subjects.Len())
	require.Empty(t, e.policies)
	require.Empty(t, e.sets)
	require.Empty(t, e.lists)
	require.Empty(t, e.members)
	require.Empty(t, e.everywhere)
	require.Len(t, e.profiles, 1)
	require.Len(t, e.slots, 1, "only the built-in profile")
	require.Empty(t, e.index.selections)
	require.Empty(t, e.index.keys)
	require.Empty(t, e.index.subjects)
	require.Empty(t, e.index.loose)
	require.Empty(t, e.routes.table)
	require.Empty(t, e.routes.emitted)
	require.Empty(t, e.routes.tunnelled)
	require.Empty(t, e.routes.fromBlock)
	require.Empty(t, e.routes.fromTunnel)
	require.Empty(t, e.routes.floating)
	require.Empty(t, e.routes.fromFloat)
	require.Empty(t, e.routes.pending)
	require.Empty(t, e.services)
	require.Empty(t, e.originations.services)
	require.Empty(t, e.originations.sliceOf)
	require.Empty(t, e.originations.all)
	require.Empty(t, e.originations.local)
	require.Empty(t, e.originations.active)
	require.Empty(t, e.originations.named)
	require.Empty(t, e.secrets.nodes)
	require.Empty(t, e.secrets.configs)
	require.Empty(t, e.secrets.peers)
	require.Empty(t, e.secrets.values)
}
