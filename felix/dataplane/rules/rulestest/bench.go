//go:build lab

package rulestest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

// Crowd is a firewall with n endpoints, each under a list of its own if own is set.
func Crowd(n int, own bool) desired.FirewallDelta {
	workloads := map[string]desired.Workload{}
	lists := []view.PolicyList{listOf("shared")}
	for i := range n {
		name := "shared"
		if own {
			name = fmt.Sprint("own", i)
			lists = append(lists, listOf(name))
		}
		workloads[fmt.Sprintf("cali%05d", i)] = Under(name)
	}
	return Firewall(workloads, lists, AllowAll, policyOf("np/s/one", 80), policyOf("np/s/two", 81))
}

func listOf(id string, more ...string) view.PolicyList {
	policies := append([]string{"np/s/one", "np/s/two"}, more...)
	return view.PolicyList{ID: id, Profiles: []string{"pro/all"}, Tiers: []view.TierPolicies{
		{Name: "default", DefaultAction: view.Deny, Ingress: policies, Egress: policies},
	}}
}

func policyOf(id string, p uint16) view.Policy {
	rule := []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: Port(p)}}}
	return view.Policy{ID: id, Ingress: rule, Egress: rule}
}

// BenchRuleChanged changes a rule of a policy that 500 endpoints are under, which have both families or IPv4 only.
func (k Kind) BenchRuleChanged(b *testing.B) {
	for _, only4 := range []bool{false, true} {
		b.Run(fmt.Sprintf("onlyIPv4=%v", only4), func(b *testing.B) {
			d := k.Open(b, labtest.Enter(b))
			d.Whole()
			crowd := Crowd(500, false)
			crowd.Settings.NoIPv6 = only4
			Apply(b, d, crowd)
			p := uint16(1000)
			for b.Loop() {
				rest(b)
				p++
				var c desired.FirewallDelta
				for _, ch := range desired.PolicyChains(policyOf("np/s/two", p), "") {
					c.Chains.Put(ch.Name, ch)
				}
				d.Update(c)
				require.NoError(b, d.Apply(context.Background()))
			}
		})
	}
}

// BenchNewPolicy puts 500 endpoints under one policy more, which share a list of policies or have their own.
func (k Kind) BenchNewPolicy(b *testing.B) {
	for _, own := range []bool{false, true} {
		b.Run(fmt.Sprintf("ownLists=%v", own), func(b *testing.B) {
			d := k.Open(b, labtest.Enter(b))
			d.Whole()
			Apply(b, d, Crowd(500, own))
			n := 0
			for b.Loop() {
				rest(b)
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
					// A policy that asks something new of labels makes a new list.
					for _, ch := range desired.ListChains(listOf(fmt.Sprint("l", i, "-", n), id)) {
						c.Chains.Put(ch.Name, ch)
					}
					for _, dir := range []desired.Direction{desired.Ingress, desired.Egress} {
						c.Chains.Remove(desired.ListChain(fmt.Sprint("l", i, "-", n-1), dir))
					}
				}
				for i := range 500 {
					x := Under(fmt.Sprint("l", i%lists, "-", n))
					x.Endpoint = fmt.Sprint("k8s/test/", i)
					c.Workloads.Put(fmt.Sprintf("cali%05d", i), x)
				}
				d.Update(c)
				require.NoError(b, d.Apply(context.Background()))
			}
		})
	}
}

// rest is between two changes: the kernel gets done with what the former replaced, as it does between changes that users make.
func rest(b *testing.B) {
	b.StopTimer()
	time.Sleep(50 * time.Millisecond)
	b.StartTimer()
}
