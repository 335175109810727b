package hold

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

func TestPools(t *testing.T) {
	const settle = time.Second
	now := time.Unix(100, 0)
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: "10.0.0.0/16"}}
	p.Name = "p"
	var m Pools
	look := func(owned ...string) PoolPlan {
		var list []netip.Prefix
		for _, o := range owned {
			list = append(list, netip.MustParsePrefix(o))
		}
		return m.Look([]*api.IPPool{p}, list, settle, now)
	}
	plan := look("10.0.0.0/26")
	require.Len(t, plan.Write, 1)
	require.Empty(t, p.Finalizers, "what was given is not changed")
	p = plan.Write[0]
	require.Equal(t, []string{api.IPPoolFinalizer}, p.Finalizers)
	require.Equal(t, PoolPlan{}, look("10.0.0.0/26"))

	p.DeletionTimestamp = &metav1.Time{Time: now}
	p.Finalizers = append(p.Finalizers, "another's")
	require.Equal(t, PoolPlan{Next: settle}, look("10.0.0.0/26"))
	now = now.Add(settle)
	plan = look("10.0.0.0/26", "10.9.0.0/26")
	require.Len(t, plan.Release, 1)
	require.Empty(t, plan.Write)
	plan = look("10.9.0.0/26")
	require.Equal(t, []string{"another's"}, plan.Write[0].Finalizers)
	p = plan.Write[0]
	require.Equal(t, PoolPlan{}, look(), "nothing of ours keeps it")
}

func TestTiers(t *testing.T) {
	now := metav1.NewTime(time.Unix(100, 0))
	tier := &api.Tier{}
	tier.Name = "t"
	other := metav1.Condition{Type: "PoliciesValid", Status: "False", Reason: "x"}
	tier.Status.Conditions = []metav1.Condition{other}
	policies := map[string][]api.Key{}
	decide := func() []*api.Tier { return Tiers([]*api.Tier{tier}, policies, now) }
	list := decide()
	require.Len(t, list, 1)
	tier = list[0]
	require.Equal(t, []string{api.TierFinalizer}, tier.Finalizers)
	require.Equal(t, other, tier.Status.Conditions[0], "what others say stays")
	require.Equal(t, "Active", tier.Status.Conditions[1].Reason)
	require.Empty(t, decide())

	tier.DeletionTimestamp = &now
	for _, name := range []string{"d", "a", "c", "b"} {
		policies["t"] = append(policies["t"], api.Key{Kind: "GlobalNetworkPolicy", Name: name})
	}
	tier = decide()[0]
	require.Equal(t, []string{api.TierFinalizer}, tier.Finalizers)
	require.Equal(t, "the tier goes when its policies have: GlobalNetworkPolicy(a), GlobalNetworkPolicy(b), GlobalNetworkPolicy(c) and 1 more", tier.Status.Conditions[1].Message)
	require.Empty(t, decide())
	delete(policies, "t")
	tier = decide()[0]
	require.Empty(t, tier.Finalizers)
	require.Empty(t, decide())
}
