package scope_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/scope"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/thorough"
)

var web = scope.Pod{Namespace: "shop", Name: "web-0", UID: "u1"}

func workload(pod scope.Pod, list string) view.WorkloadEndpoint {
	return view.WorkloadEndpoint{
		ID:  view.EndpointID{Orchestrator: "k8s", Workload: pod.Namespace + "/" + pod.Name, Endpoint: "eth0"},
		UID: pod.UID, PolicyList: list,
	}
}

func list(id string, policies ...string) view.PolicyList {
	return view.PolicyList{ID: id, Tiers: []view.TierPolicies{{Name: "default", Ingress: policies}}, Profiles: []string{"pro/kns.shop"}}
}

func policy(id string, sets ...string) view.Policy {
	return view.Policy{ID: id, Ingress: []view.Rule{{Action: view.Allow, Source: view.Match{Sets: sets}}}}
}

func member(n int) view.Member {
	return view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 32)}
}

func set(id string, members ...int) view.IPSet {
	s := view.IPSet{ID: id, Type: view.SetNet}
	for _, n := range members {
		s.Members = append(s.Members, member(n))
	}
	return s
}

// node is a state with one follower, and what its listener has made of what it was told.
type node struct {
	*state.State
	follower *scope.Follower
	knows    map[view.Key]view.Item
	inSync   bool
}

func newNode(pod scope.Pod) *node {
	return &node{State: state.New("worker-1"), follower: scope.NewFollower(pod), knows: map[view.Key]view.Item{}}
}

// apply is a batch as the agent takes it.
func (n *node) apply(b view.Batch) (news bool) {
	n.Apply(b)
	news = n.follower.Note(n.FirewallChanged())
	n.ChangedFirewall()
	return news
}

func (n *node) put(items ...view.Item) bool { return n.apply(view.Batch{Updates: items, InSync: true}) }

func (n *node) remove(items ...view.Item) bool {
	var b view.Batch
	for _, it := range items {
		b.Removes = append(b.Removes, it.Key())
	}
	return n.apply(b)
}

// listen takes what there is to be told, and tells it in words.
func (n *node) listen(t *testing.T) (told []string) {
	t.Helper()
	u := n.follower.Next(n.State)
	for _, item := range u.Items {
		key := item.Key()
		if d, ok := item.(view.IPSetDelta); ok {
			told = append(told, fmt.Sprintf("%s +%d -%d", key.ID, len(d.Added), len(d.Removed)))
			before, ok := n.knows[key].(view.IPSet)
			require.True(t, ok, "a change of %s, which the listener does not have", key.ID)
			in := map[view.Member]bool{}
			for _, m := range before.Members {
				in[m] = true
			}
			for _, m := range d.Added {
				in[m] = true
			}
			for _, m := range d.Removed {
				delete(in, m)
			}
			before.Members = slices.SortedFunc(maps.Keys(in), view.Member.Compare)
			n.knows[key] = before
			continue
		}
		told = append(told, key.ID)
		n.knows[key] = item
	}
	for _, key := range u.Gone {
		require.Contains(t, n.knows, key, "what was never told is gone")
		delete(n.knows, key)
		told = append(told, "-"+key.ID)
	}
	if u.InSync {
		require.False(t, n.inSync, "in sync twice")
		n.inSync = true
		told = append(told, "in sync")
	}
	require.Equal(t, len(told) == 0, u.Empty())
	return told
}

var everything = []view.Item{
	set("s:1", 1, 2), set("s:other", 3), policy("np/shop/a", "s:1"), policy("np/shop/other", "s:other"), policy("pro/kns.shop"),
	list("l1", "np/shop/a"), list("l2", "np/shop/other"), workload(web, "l1"), workload(scope.Pod{Namespace: "shop", Name: "db", UID: "u2"}, "l2"),
}

func TestAPodIsToldWhatConcernsItAndNothingElse(t *testing.T) {
	n := newNode(web)
	require.Empty(t, n.listen(t), "before the view is whole")
	n.put(everything...)
	require.Equal(t, []string{"s:1", "np/shop/a", "pro/kns.shop", "l1", "k8s/shop/web-0/eth0", "in sync"}, n.listen(t))
	require.Empty(t, n.listen(t), "all was told")
	require.False(t, n.put(set("s:other", 4), policy("np/shop/other")), "what is another's is no news")
	require.Empty(t, n.listen(t))
}

func TestAPodThatIsNotKnownYetIsWaitedFor(t *testing.T) {
	n := newNode(web)
	n.put(everything[:7]...)
	require.Empty(t, n.listen(t))
	other := web
	other.UID = "u0"
	require.True(t, n.put(workload(other, "l1")))
	require.Empty(t, n.listen(t), "a pod that had the name before")
	require.True(t, n.put(workload(web, "l1")))
	require.Contains(t, n.listen(t), "in sync")
}

func TestChanges(t *testing.T) {
	n := newNode(web)
	n.put(everything...)
	n.listen(t)
	for _, step := range []struct {
		name string
		do   func() bool
		want []string
	}{
		{"a member joins", func() bool { return n.put(view.IPSetDelta{ID: "s:1", Added: []view.Member{member(9)}}) }, []string{"s:1 +1 -0"}},
		{"a member leaves and another joins", func() bool {
			return n.put(view.IPSetDelta{ID: "s:1", Added: []view.Member{member(8)}, Removed: []view.Member{member(9)}})
		}, []string{"s:1 +1 -1"}},
		{"a set comes anew", func() bool { return n.put(set("s:1", 5)) }, []string{"s:1"}},
		{"a policy is edited and names another set", func() bool { return n.put(set("s:2"), policy("np/shop/a", "s:2")) }, []string{"s:2", "np/shop/a", "-s:1"}},
		{"another list", func() bool { return n.put(workload(web, "l2")) }, []string{"s:other", "np/shop/other", "l2", "k8s/shop/web-0/eth0", "-l1", "-np/shop/a", "-s:2"}},
		{"the policy of the list is missing for now", func() bool { return n.remove(policy("np/shop/other")) }, nil},
		{"it is there again", func() bool { return n.put(policy("np/shop/other")) }, []string{"np/shop/other", "-s:other"}},
		{"a profile", func() bool { return n.put(policy("pro/kns.shop", "s:1")) }, []string{"s:1", "pro/kns.shop"}},
		{"a set that a policy names is removed", func() bool { return n.remove(set("s:1")) }, []string{"-s:1"}},
		{"it comes again", func() bool { return n.put(set("s:1", 7)) }, []string{"s:1"}},
		{"the pod goes", func() bool { return n.remove(workload(web, "")) }, []string{"-k8s/shop/web-0/eth0", "-l2", "-pro/kns.shop", "-np/shop/other", "-s:1"}},
		{"it comes back", func() bool { return n.put(workload(web, "l1")) }, []string{"s:1", "s:2", "np/shop/a", "pro/kns.shop", "l1", "k8s/shop/web-0/eth0"}},
	} {
		require.True(t, step.do(), "%s: is news", step.name)
		require.Equal(t, step.want, n.listen(t), step.name)
	}
}

// One who listens slowly is told the last state of each thing once, and what is kept for it is bounded.
func TestASlowListener(t *testing.T) {
	n := newNode(web)
	n.put(everything...)
	n.listen(t)
	for i := range 100 {
		n.put(view.IPSetDelta{ID: "s:1", Added: []view.Member{member(100 + i%3)}}, policy("np/shop/a", "s:1"))
		n.put(view.IPSetDelta{ID: "s:1", Removed: []view.Member{member(100)}})
	}
	require.Equal(t, []string{"s:1 +2 -1", "np/shop/a"}, n.listen(t))
	for i := range 3000 {
		n.put(view.IPSetDelta{ID: "s:1", Added: []view.Member{member(i)}})
	}
	require.Equal(t, []string{"s:1"}, n.listen(t), "the whole set, as too much of it has changed")
	known, ok := n.knows[view.Key{Kind: view.KindIPSet, ID: "s:1"}].(view.IPSet)
	require.True(t, ok)
	require.Len(t, known.Members, 3000)
}

func TestDeciders(t *testing.T) {
	n := newNode(web)
	n.put(everything...)
	require.Equal(t, map[string]int{"np/shop/a": 1, "pro/kns.shop": 1}, scope.Deciders(n.State, web))
	require.Empty(t, scope.Deciders(n.State, scope.Pod{Namespace: "shop", Name: "nobody"}))
}

// Whatever changes, in whatever portions the listener asks: it knows what it would be told if it began now.
func TestAListenerKnowsWhatOneWhoBeginsNowWouldBeTold(t *testing.T) {
	for seed := range thorough.Rounds(30, 300) {
		r := rand.New(rand.NewPCG(uint64(seed), 7)) //nolint:gosec // a test that can be repeated
		n := newNode(web)
		pick := func(kind string, of int) string { return fmt.Sprintf("%s%d", kind, r.IntN(of)) }
		for range 60 {
			var b view.Batch
			for range 1 + r.IntN(4) {
				var item view.Item
				switch r.IntN(6) {
				case 0:
					item = set(pick("s:", 4), r.IntN(9), 10+r.IntN(9))
				case 1:
					id := pick("s:", 4)
					if _, there := n.Sets[id]; !there {
						continue
					}
					b.Updates = append(b.Updates, view.IPSetDelta{ID: id, Added: []view.Member{member(r.IntN(9))}, Removed: []view.Member{member(10 + r.IntN(9))}})
					continue
				case 2:
					item = policy(pick("np/shop/", 3), pick("s:", 4), pick("s:", 4))
				case 3:
					item = policy("pro/kns.shop", pick("s:", 4))
				case 4:
					item = list(pick("l", 2), pick("np/shop/", 3), pick("np/shop/", 3))
				case 5:
					item = workload(web, pick("l", 2))
				}
				if r.IntN(5) == 0 {
					b.Removes = append(b.Removes, item.Key())
				} else {
					b.Updates = append(b.Updates, item)
				}
			}
			b.InSync = r.IntN(8) == 0
			n.apply(b)
			if r.IntN(3) > 0 {
				continue
			}
			n.listen(t)
			if w, ok := n.Workloads[web.ID()]; ok && len(n.ListLacks(w.PolicyList)) > 0 {
				continue // it is held back until all is there
			}
			fresh := newNode(web)
			fresh.State = n.State
			fresh.listen(t)
			if !assert.Equal(t, fresh.knows, n.knows, "seed %d", seed) {
				return
			}
		}
	}
}
