package agent_test

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/scope"
)

// A follower is woken by what concerns its pod, whether the kernel takes it or not, and by nothing else.
func TestFollowersAreWokenByWhatConcernsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		web := scope.Pod{Namespace: "shop", Name: "web", UID: "u1"}
		f, woken := scope.NewFollower(web), 0
		stop := r.Follow(t.Context(), f, func() { r.note(func() { woken++ }) })
		wakes := func() int {
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			n := woken
			woken = 0
			return n
		}
		told := func() (keys []string) {
			u, err := r.Next(t.Context(), f)
			require.NoError(t, err)
			for _, item := range u.Items {
				keys = append(keys, item.Key().ID)
			}
			return keys
		}
		tell := func(items ...view.Item) { r.Batch(t.Context(), view.Batch{Updates: items}, nil) }
		require.Empty(t, told())
		r.sync()
		require.Zero(t, wakes())
		require.Empty(t, told(), "the pod is not known")

		tell(view.WorkloadEndpoint{ID: view.EndpointID{Orchestrator: "k8s", Workload: "shop/web", Endpoint: "eth0"}, UID: "u1", PolicyList: "l1"})
		require.Equal(t, 1, wakes())
		require.Equal(t, []string{"pro/all", "l1", "k8s/shop/web/eth0"}, told())
		deciders, err := r.Deciders(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, map[string]int{"pro/all": 1}, deciders)

		tell(view.Policy{ID: "np/shop/other"})
		require.Zero(t, wakes())
		r.kernel.breaks(broken("pro/all"))
		tell(view.Policy{ID: "pro/all"})
		require.NotZero(t, wakes())
		require.Equal(t, []string{"pro/all"}, told())

		stop()
		tell(view.Policy{ID: "pro/all", Ingress: []view.Rule{{Action: view.Allow}}})
		require.Zero(t, wakes())
	})
}

func TestTheHomeOfPolicySyncFollowsTheConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		synctest.Wait()
		require.Empty(t, r.homes, "it is off")
		for _, home := range []string{"/var/run/nodeagent", "/var/run/nodeagent", ""} {
			c := &api.FelixConfiguration{Spec: *api.EffectiveFelix()}
			c.Spec.PolicySyncPathPrefix = home
			r.Batch(t.Context(), view.Batch{Updates: []view.Item{view.Resource{Object: c}}}, nil)
			synctest.Wait()
		}
		require.Equal(t, []string{"/var/run/nodeagent", ""}, r.homes)
	})
}
