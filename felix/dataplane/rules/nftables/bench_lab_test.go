//go:build lab

package nftables_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

// BenchmarkPolicyChange edits one policy of thousands, each with a set of its own, on a node with 500 endpoints.
func BenchmarkPolicyChange(b *testing.B) {
	labtest.Enter(b)
	for _, policies := range []int{100, 10_000} {
		b.Run(fmt.Sprint(policies), func(b *testing.B) {
			d := open(b)
			d.Whole()
			list := view.PolicyList{ID: "l", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny}}}
			workloads := map[string]desired.Workload{}
			for i := range 500 {
				workloads[fmt.Sprintf("cali%d", i)] = under("l")
			}
			rule := func(id string) view.Rule {
				return view.Rule{Action: view.Allow, Protocol: 6, Source: view.Match{Sets: []string{"s:" + id}}, Destination: view.Match{Ports: port(80)}}
			}
			var all []view.Policy
			sets := map[string]desired.Set{}
			for i := range policies {
				id := fmt.Sprintf("gnp/p%d", i)
				list.Tiers[0].Ingress = append(list.Tiers[0].Ingress, id)
				all = append(all, view.Policy{ID: id, Ingress: []view.Rule{rule(id)}})
				sets["s:"+id] = desired.Set{Type: view.SetNet, Members: members(fmt.Sprintf("10.0.%d.%d/32", i>>8, i&255))}
			}
			c := firewall(workloads, []view.PolicyList{list}, all...)
			c.Sets.Set = sets
			d.Update(c)
			require.NoError(b, d.Apply(context.Background()))
			require.True(b, d.InSync())
			for i := 0; b.Loop(); i++ {
				c := desired.FirewallDelta{}
				p := view.Policy{ID: "gnp/p7", Ingress: []view.Rule{rule("gnp/p7"), {Action: view.Deny, Protocol: view.Protocol(i)}}}
				for _, chain := range desired.PolicyChains(p, "") {
					c.Chains.Put(chain.Name, chain)
				}
				d.Update(c)
				require.NoError(b, d.Apply(context.Background()))
			}
		})
	}
}

// crowd is a firewall with n endpoints, each under a list of its own if own is set.
func crowd(n int, own bool) desired.FirewallDelta {
	workloads := map[string]desired.Workload{}
	lists := []view.PolicyList{listOf("shared")}
	for i := range n {
		name := "shared"
		if own {
			name = fmt.Sprint("own", i)
			lists = append(lists, listOf(name))
		}
		workloads[fmt.Sprintf("cali%05d", i)] = under(name)
	}
	return firewall(workloads, lists, allowAll, policyOf("np/s/one", 80), policyOf("np/s/two", 81))
}

func listOf(id string, more ...string) view.PolicyList {
	policies := append([]string{"np/s/one", "np/s/two"}, more...)
	return view.PolicyList{ID: id, Profiles: []string{"pro/all"}, Tiers: []view.TierPolicies{
		{Name: "default", DefaultAction: view.Deny, Ingress: policies, Egress: policies},
	}}
}

func policyOf(id string, p uint16) view.Policy {
	rule := []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: port(p)}}}
	return view.Policy{ID: id, Ingress: rule, Egress: rule}
}

func BenchmarkRuleChangedAt500Endpoints(b *testing.B) {
	labtest.Enter(b)
	d := open(b)
	d.Whole()
	apply(b, d, crowd(500, false))
	p := uint16(1000)
	for b.Loop() {
		p++
		var c desired.FirewallDelta
		for _, ch := range desired.PolicyChains(policyOf("np/s/two", p), "") {
			c.Chains.Put(ch.Name, ch)
		}
		d.Update(c)
		require.NoError(b, d.Apply(context.Background()))
	}
}

func BenchmarkNewPolicyAt500Endpoints(b *testing.B) {
	for _, own := range []bool{false, true} {
		b.Run(fmt.Sprintf("ownLists=%v", own), func(b *testing.B) {
			labtest.Enter(b)
			d := open(b)
			d.Whole()
			apply(b, d, crowd(500, own))
			n := 0
			for b.Loop() {
				n++
				id := fmt.Sprint("np/s/new", n)
				var c desired.FirewallDelta
				for _, ch := range desired.PolicyChains(policyOf(id, 90), "") {
					c.Chains.Put(ch.Name, ch)
				}
				lists := 1
				if own {
					lists = 500
				}
				for i := range lists {
					// A list's id is a hash of its content: a new policy makes a new list.
					for _, ch := range desired.ListChains(listOf(fmt.Sprint("l", i, "-", n), id)) {
						c.Chains.Put(ch.Name, ch)
					}
					for _, dir := range []desired.Direction{desired.Ingress, desired.Egress} {
						c.Chains.Remove(desired.ListChain(fmt.Sprint("l", i, "-", n-1), dir))
					}
				}
				for i := range 500 {
					c.Workloads.Put(fmt.Sprintf("cali%05d", i), under(fmt.Sprint("l", i%lists, "-", n)))
				}
				d.Update(c)
				require.NoError(b, d.Apply(context.Background()))
			}
		})
	}
}
