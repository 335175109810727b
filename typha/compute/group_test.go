package compute

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// A workload that comes into a group, of which all others are about to leave, has the policies that came at the same time.
// Those that leave are not selected by them, so nobody else says that the group's list is out of date.
func TestComesAsTheOthersLeave(t *testing.T) {
	workload := func(name string, labels map[string]string) cache.Change {
		o := &api.WorkloadEndpoint{}
		o.Namespace, o.Name, o.Labels = "shop", name, labels
		o.Spec = api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: "n1", Pod: name, Endpoint: "eth0", IPNetworks: []string{"10.0.0.1/32"}}
		return cache.Change{Key: api.KeyOf(o), Object: o}
	}
	policy := func(name, selector string) cache.Change {
		o := &api.NetworkPolicy{}
		o.Namespace, o.Name = "shop", name
		o.Spec = api.NetworkPolicySpec{Selector: selector, Types: []api.PolicyType{api.Ingress}}
		return cache.Change{Key: api.KeyOf(o), Object: o}
	}
	for name, leaves := range map[string][]cache.Change{
		"a label is looked at for the first time": {policy("new", "app == 'web' && !has(env)")},
		"its labels change":                       {workload("old", map[string]string{"app": "db", "env": "test"}), policy("new", "app == 'web'")},
		"it is deleted":                           {{Key: workload("old", nil).Key}, policy("new", "app == 'web'")},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // endpoints are computed in any order
				e, store := New(), views.NewStore()
				e.Apply(policy("app", "app == 'web'"), workload("old", map[string]string{"app": "web", "env": "test"}))
				store.Commit(e.Flush())
				e.Apply(leaves...)
				e.Apply(workload("young", map[string]string{"app": "web"}))
				store.Commit(e.Flush())
				scope, applies := views.Scope{Node: "n1", View: views.NodeView}, []string(nil)
				for _, entry := range store.View(scope) {
					if o, ok := entry.Item.(view.WorkloadEndpoint); ok && o.ID.Workload == "shop/young" {
						l := store.Get(scope, view.Key{Kind: view.KindPolicyList, ID: o.PolicyList})
						applies = l.Item.(view.PolicyList).Tiers[0].Ingress
					}
				}
				require.Equal(t, []string{"np/shop/app", "np/shop/new"}, applies)
			}
		})
	}
}
