//go:build lab

package rulestest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

// Rich is a firewall with something of everything, but for host endpoints.
func Rich() desired.FirewallDelta {
	web := view.Policy{ID: "np/shop/web", Ingress: []view.Rule{
		{Action: view.Allow, Protocol: tcp, Source: view.Match{Sets: []string{"s:a"}}, Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}}}},
		{Action: view.Allow, Source: view.Match{Nets: Nets("10.0.0.0/8", "192.168.0.0/16")}, Destination: view.Match{NamedPorts: []string{"n:http"}}},
		{Action: view.Log},
	}}
	list := view.PolicyList{ID: "shop", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/shop/web"}}}, Profiles: []string{"pro/all"}}
	spoofer := Under("open")
	spoofer.AllowedSources = Nets("10.99.0.0/24", "fd99::/64")
	known := Under("open")
	known.Addresses = Addrs("10.0.1.1", "fd00:1::1")
	d := Firewall(map[string]desired.Workload{"cali1": known, "cali2": Under("shop"), "cali3": spoofer, "cali4": {}},
		append(OpenLists, list), web, AllowAll)
	d.Sets.Put("s:a", desired.Set{Type: view.SetNet, Members: Members("10.0.1.1/32", "10.0.4.0/24", "10.0.4.7/32", "10.0.5.0/24", "255.255.255.255/32", "fd00:1::/64")})
	d.Sets.Put("n:http", desired.Set{Type: view.SetIPPort, Members: []view.Member{{Prefix: netip.MustParsePrefix("10.0.1.2/32"), Protocol: tcp, Port: 8080}}})
	d.Sets.Put(desired.SetMasqPools, desired.Set{Type: view.SetNet, Members: Members("10.0.0.0/16", "fd00::/16")})
	d.Settings.NATOutgoing = &desired.NATOutgoing{}
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	d.Settings.VXLAN6 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan-v6.calico"}
	d.Settings.IPIP = &desired.IPIPAdmission{Device: "tunl0"}
	return d
}

// A driver that starts on what another of its kind left takes it over as it is.
func (k Kind) testRestartAdoptsWithoutWriting(t *testing.T) {
	ns := labtest.Enter(t)
	d := Rich()
	Protect(&d, "*", Endpoint{desired.PreDNAT: {Ingress: []view.Rule{DenyTo(tcp, 30080)}}, desired.Forward: {Ingress: []view.Rule{Anything}}, desired.Normal: {Ingress: []view.Rule{Anything}}})
	Protect(&d, "eth0", Endpoint{desired.Untracked: {Ingress: []view.Rule{AllowTo(udp, 53)}, Egress: []view.Rule{AllowFrom(udp, 53)}}})
	Apply(t, k.Open(t, ns), d)
	before := ns.Run(t, k.List)
	for range 2 {
		again := k.Open(t, ns)
		again.Whole()
		Apply(t, again, d)
		assert.Zero(t, again.Writes())
	}
	assert.Equal(t, before, ns.Run(t, k.List))
}

// random is a firewall that changes at random, and what it has come to.
type random struct {
	*rand.Rand
	whole desired.FirewallDelta
}

func (r *random) name(prefix string, n int) string { return fmt.Sprint(prefix, r.IntN(n)) }

func (r *random) set() desired.Set {
	s := desired.Set{Type: view.SetNet}
	for range r.IntN(30) {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(256))}), 24+r.IntN(9))
		if r.IntN(30) == 0 {
			p = netip.PrefixFrom(p.Addr(), r.IntN(2)) // everything, or half of it
		}
		s.Members = append(s.Members, view.Member{Prefix: p.Masked()})
	}
	return s
}

func (r *random) policy(id string) view.Policy {
	p := view.Policy{ID: id}
	for range r.IntN(4) {
		p.Ingress = append(p.Ingress, view.Rule{Action: view.Action(1 + r.IntN(4)), Protocol: tcp, Source: view.Match{
			Sets: []string{r.name("s:", 4)}, Nets: Nets("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")[:1+r.IntN(3)],
		}})
	}
	return p
}

// change changes one thing.
func (r *random) change() (c desired.FirewallDelta) {
	policy := r.name("np/x/", 4)
	switch r.IntN(11) {
	case 0:
		c.Sets.Put(r.name("s:", 4), r.set())
	case 1:
		c.Sets.Remove(r.name("s:", 4))
	case 2, 3:
		for _, chain := range desired.PolicyChains(r.policy(policy), "") {
			c.Chains.Put(chain.Name, chain)
		}
	case 4:
		c.Chains.Remove(desired.PolicyChain(policy, desired.Ingress))
	case 5:
		l := view.PolicyList{ID: r.name("l", 3), Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{policy}}}}
		for _, chain := range desired.ListChains(l) {
			c.Chains.Put(chain.Name, chain)
		}
	case 6:
		x := Under(r.name("l", 3))
		if r.IntN(3) == 0 {
			x.AllowedSources = Nets("10.99.0.0/24")
		}
		c.Workloads.Put(r.name("cali", 25), x)
	case 7:
		c.Workloads.Remove(r.name("cali", 25))
	case 8:
		s := *r.whole.Settings
		s.RejectDenied, s.CutFlows, s.NoIPv6, s.NATOutgoing = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0, nil
		if r.IntN(2) == 0 {
			s.NATOutgoing = &desired.NATOutgoing{}
		}
		c.Settings = &s
	case 9:
		e := Endpoint{}
		for pass := desired.Untracked; pass <= desired.Normal; pass++ {
			if r.IntN(2) == 0 {
				e[pass] = view.Policy{Ingress: r.policy("").Ingress}
			}
		}
		Protect(&c, r.name("eth", 2), e)
	case 10:
		c.Hosts.Remove(r.name("eth", 2))
	}
	if c.Settings != nil {
		r.whole.Settings = c.Settings
	}
	keep(r.whole.Sets.Set, c.Sets)
	keep(r.whole.Chains.Set, c.Chains)
	keep(r.whole.Workloads.Set, c.Workloads)
	keep(r.whole.Hosts.Set, c.Hosts)
	return c
}

func keep[V any](all map[string]V, c desired.Delta[string, V]) {
	for name := range c.Removed {
		delete(all, name)
	}
	maps.Copy(all, c.Set)
}

// The firewall is changed at random, and then a fresh driver compares: it must find nothing to do.
func (k Kind) testAnyOrderOfChangesEndsTheSame(t *testing.T) {
	ns := labtest.Enter(t)
	r := random{Rand: rand.New(rand.NewPCG(3, 4)), whole: desired.FirewallDelta{Settings: &desired.Settings{WorkloadPrefixes: []string{"cali"}}}}
	r.whole.Sets.Set, r.whole.Chains.Set = map[string]desired.Set{}, map[string]desired.Chain{}
	r.whole.Workloads.Set, r.whole.Hosts.Set = map[string]desired.Workload{}, map[string]desired.Host{}
	d := k.Open(t, ns)
	d.Whole()
	for step := range 100 {
		for range 1 + r.IntN(6) {
			d.Update(r.change())
		}
		Apply(t, d, desired.FirewallDelta{})
		if step%10 != 9 {
			continue
		}
		fresh := k.Open(t, ns)
		fresh.Whole()
		before := ns.Run(t, k.List)
		Apply(t, fresh, r.whole)
		require.Zero(t, fresh.Writes(), "after step %d", step)
		require.Equal(t, before, ns.Run(t, k.List))
		require.NoError(t, fresh.Close())
	}
}
