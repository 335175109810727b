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

func BenchmarkRuleChangedAt500Endpoints(b *testing.B) { kind.BenchRuleChanged(b) }

func BenchmarkNewPolicyAt500Endpoints(b *testing.B) { kind.BenchNewPolicy(b) }
