package render_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/thorough"
)

// TestFirewallAddsUp changes policies, lists, sets, endpoints, host endpoints, interfaces and settings at random, all with few
// names, so that everything that can refer to something meets it present, changed and missing. The sum of the changes is what is
// computed from scratch.
func TestFirewallAddsUp(t *testing.T) {
	policies := []string{"gnp/a", "gnp/b", "np/ns/c", "sgnp/d", "pro/p", "pro/q"}
	lists := []string{"l1", "l2", "l3"}
	for seed := range uint64(thorough.Rounds(4, 100)) {
		r := rand.New(rand.NewPCG(seed, 9))
		pick := func(from []string) string { return from[r.IntN(len(from))] }
		some := func(from []string) (out []string) {
			for _, x := range from {
				if r.IntN(3) == 0 {
					out = append(out, x)
				}
			}
			return out
		}
		maybe := func(from []string) string { return pick(append([]string{""}, from...)) }
		put := func(s *state.State, items ...view.Item) state.Section { return s.Apply(view.Batch{Updates: items}) }
		random := []func() view.Item{
			func() view.Item {
				p := view.Policy{ID: pick(policies), DoNotTrack: r.IntN(6) == 0, PreDNAT: r.IntN(6) == 0}
				p.Staged = desired.Staged(p.ID)
				p.Ingress = []view.Rule{{Action: view.Allow, Protocol: view.Protocol(r.IntN(3))}, {Action: view.Log}}
				return p
			},
			func() view.Item {
				l := view.PolicyList{ID: pick(lists), Profiles: some(policies[4:])}
				for _, tier := range some([]string{"x", "y"}) {
					l.Tiers = append(l.Tiers, view.TierPolicies{Name: tier, DefaultAction: view.Deny, Ingress: some(policies[:4]), Egress: some(policies[:4])})
				}
				return l
			},
			func() view.Item { return view.IPSet{ID: pick([]string{"s:1", "s:2"}), Members: randomMembers(r)} },
			func() view.Item {
				return view.WorkloadEndpoint{ID: pod(pick([]string{"a", "b"})).ID, PolicyList: pick(lists), Incomplete: some([]string{"profile z"})}
			},
			func() view.Item {
				e := view.HostEndpoint{
					Name: pick([]string{"h1", "h2", "h3"}), Interface: pick([]string{"eth0", "*", ""}), Incomplete: some([]string{"profile z"}),
					Normal: pick(lists), Untracked: maybe(lists), PreDNAT: maybe(lists), Forward: maybe(lists),
				}
				if e.Interface == "" {
					e.ExpectedIPs = []netip.Addr{addr(pick([]string{"10.0.0.1", "10.0.0.2"}))}
				}
				return e
			},
		}
		s, k := state.New(self), newKernel()
		changes := []func() state.Section{
			func() state.Section {
				id := pick([]string{"s:1", "s:2"})
				if _, there := s.Sets[id]; !there {
					return 0
				}
				return put(s, view.IPSetDelta{ID: id, Added: randomMembers(r), Removed: randomMembers(r)})
			},
			func() state.Section {
				h := state.Host{Interfaces: map[string]state.Interface{"eth0": {Index: 1}}}
				for _, a := range some([]string{"10.0.0.1/24", "10.0.0.2/24"}) {
					h.Interfaces[pick([]string{"eth0", "eth1"})] = state.Interface{Index: 1, Addresses: []netip.Prefix{prefix(a)}}
				}
				return s.SetHost(h)
			},
			func() state.Section {
				e := pod(pick([]string{"a", "b"}), "192.168.1.5")
				if r.IntN(3) == 0 {
					return s.DeleteLocal(e.Interface)
				}
				e.Leaving = r.IntN(4) == 0
				return s.SetLocal(e)
			},
			func() state.Section {
				return put(s, config(func(c *api.FelixConfigurationSpec) {
					c.LogPrefix = maybe([]string{"one", "two"})
					c.FailsafeInboundHostPorts = &[]api.ProtoPort{{Port: uint16(r.IntN(2) + 22)}}
				}))
			},
		}
		for range 100 {
			touched := state.Section(0)
			for range 1 + r.IntN(3) {
				switch it := random[r.IntN(len(random))](); {
				case r.IntN(3) == 0:
					touched |= changes[r.IntN(len(changes))]()
				case r.IntN(3) == 0:
					touched |= s.Apply(view.Batch{Removes: []view.Key{it.Key()}})
				default:
					touched |= put(s, it)
				}
			}
			k.follow(s, touched)
			if k.told {
				checkFirewall(t, k.fw, render.FirewallState(s))
			}
		}
	}
}

func randomMembers(r *rand.Rand) (out []view.Member) {
	for i := range byte(6) {
		if r.IntN(2) == 0 {
			out = append(out, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, i}), 32)})
		}
	}
	return out
}

// A change costs what it changes: a policy its two chains, a member of a set itself, also among many of both.
func TestFirewallChangesLittle(t *testing.T) {
	s := large(500, 1_000, 5_000)
	var fw render.Firewall
	fw.Update(s)
	s.Apply(view.Batch{Updates: []view.Item{view.Policy{ID: "gnp/p7", Tier: "default", Ingress: []view.Rule{{Action: view.Deny}}}}})
	d := fw.Update(s)
	require.Len(t, d.Chains.Set, 2)
	require.True(t, d.Workloads.Empty() && d.Sets.Empty() && d.Hosts.Empty() && len(d.Members) == 0 && d.Settings == nil)

	gone := view.Member{Prefix: prefix("10.0.0.9/32")}
	fresh := view.Member{Prefix: prefix("11.0.0.9/32")}
	s.Apply(view.Batch{Updates: []view.Item{view.IPSetDelta{ID: "s:large", Added: []view.Member{fresh}, Removed: []view.Member{gone}}}})
	d = fw.Update(s)
	require.Equal(t, map[string]desired.SetDelta{"s:large": {Added: []view.Member{fresh}, Removed: []view.Member{gone}}}, d.Members)
	require.True(t, d.Workloads.Empty() && d.Sets.Empty() && d.Hosts.Empty() && d.Chains.Empty() && d.Settings == nil)

	s.SetLocal(pod("w3", "192.168.77.7"))
	d = fw.Update(s)
	require.Len(t, d.Workloads.Set, 1)
	require.True(t, d.Chains.Empty() && d.Sets.Empty())
	require.True(t, fw.Update(s).Empty(), "nothing changed")
}

// large is a node with many endpoints under one list of many policies, and a large set.
func large(endpoints, policies, members int) *state.State {
	s := state.New(self)
	b := view.Batch{InSync: true}
	list := view.PolicyList{ID: "l", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny}}}
	for i := range policies {
		id := fmt.Sprintf("gnp/p%d", i)
		list.Tiers[0].Ingress = append(list.Tiers[0].Ingress, id)
		b.Updates = append(b.Updates, view.Policy{ID: id, Tier: "default", Ingress: []view.Rule{{Action: view.Allow, Source: view.Match{Sets: []string{"s:large"}}}}})
	}
	set := view.IPSet{ID: "s:large", Type: view.SetNet}
	for i := range members {
		set.Members = append(set.Members, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)})
	}
	b.Updates = append(b.Updates, list, set)
	for i := range endpoints {
		e := pod(fmt.Sprintf("w%d", i), netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}).String())
		s.SetLocal(e)
		b.Updates = append(b.Updates, view.WorkloadEndpoint{ID: e.ID, ContainerID: e.ContainerID, PolicyList: "l"})
	}
	s.Apply(b)
	return s
}

// BenchmarkFirewall edits one policy of 10,000 on a node with 500 endpoints, and one member of a set of 100,000.
func BenchmarkFirewall(b *testing.B) {
	s := large(500, 10_000, 100_000)
	var fw render.Firewall
	fw.Update(s)
	b.Run("policy", func(b *testing.B) {
		for i := range b.N {
			s.Apply(view.Batch{Updates: []view.Item{view.Policy{ID: "gnp/p7", Tier: "default", Ingress: []view.Rule{{Action: view.Deny, Protocol: view.Protocol(i)}}}}})
			fw.Update(s)
		}
	})
	b.Run("member", func(b *testing.B) {
		for i := range b.N {
			d := view.IPSetDelta{ID: "s:large"}
			m := []view.Member{{Prefix: prefix("10.0.77.7/32")}}
			if d.Added = m; i%2 == 0 {
				d.Added, d.Removed = nil, m
			}
			s.Apply(view.Batch{Updates: []view.Item{d}})
			fw.Update(s)
		}
	})
	b.Run("endpoint", func(b *testing.B) {
		for i := range b.N {
			s.SetLocal(pod("w3", netip.AddrFrom4([4]byte{192, 168, 77, byte(i)}).String()))
			fw.Update(s)
		}
	})
}
