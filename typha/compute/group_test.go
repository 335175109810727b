package compute_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// A workload that comes into a group, of which all others are about to leave, has the policies that came at the same time, though
// these select none of the others.
func TestComesAsTheOthersLeave(t *testing.T) {
	comes := func(name string, labels ...string) cache.Change {
		pod, _ := podOn("n1", name, nil, labels...)
		return change(podKey(name), pod)
	}
	policy := func(name, selector string) cache.Change {
		o := &api.NetworkPolicy{}
		o.Namespace, o.Name = "shop", name
		o.Spec = api.NetworkPolicySpec{Selector: selector, Types: []api.PolicyType{api.Ingress}}
		return change(api.KeyOf(o), o)
	}
	for name, leaves := range map[string][]cache.Change{
		"a label is looked at for the first time": {policy("new", "has(web) && !has(test)")},
		"its labels change":                       {comes("old", "db", "test"), policy("new", "has(web)")},
		"it is deleted":                           {change(podKey("old"), nil), policy("new", "has(web)")},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // endpoints are computed in any order
				e, store := compute.New(), views.NewStore()
				e.Apply(policy("app", "has(web)"), comes("old", "web", "test"))
				commit(store, e)
				e.Apply(leaves...)
				e.Apply(comes("young", "web"))
				commit(store, e)
				list := endpointsOf(store, "n1")["shop/young"].PolicyList
				applies := store.Get(views.Scope{Node: "n1", View: views.NodeView}, view.Key{Kind: view.KindPolicyList, ID: list})
				require.Equal(t, []string{"np/shop/app", "np/shop/new"}, applies.Item().(view.PolicyList).Tiers[0].Ingress)
			}
		})
	}
}

// A policy that asks something new of labels changes nothing for workloads of which it is not true.
func TestAsksNothingOfOthers(t *testing.T) {
	e, store := compute.New(), views.NewStore()
	with := func(node, name, crowd string) cache.Change {
		pod, _ := podOn(node, name, nil, "web")
		pod.Labels["crowd"] = crowd
		return change(podKey(name), pod)
	}
	policy := &api.GlobalNetworkPolicy{}
	policy.Name, policy.Spec.Selector, policy.Spec.Types = "new", "crowd == 'one' || crowd starts with 'on'", []api.PolicyType{api.Ingress}
	e.Apply(with("n1", "one", "one"), with("n2", "two", "two"))
	commit(store, e)
	list := func(node, pod string) string { return endpointsOf(store, node)["shop/"+pod].PolicyList }
	one, two := list("n1", "one"), list("n2", "two")
	require.Equal(t, one, two)
	e.Apply(change(api.KeyOf(policy), policy))
	commit(store, e)
	require.NotEqual(t, one, list("n1", "one"))
	require.Equal(t, two, list("n2", "two"))
	e.Apply(change(api.KeyOf(policy), nil))
	commit(store, e)
	require.Equal(t, one, list("n1", "one"))
}
