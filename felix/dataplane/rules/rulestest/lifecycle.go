//go:build lab

package rulestest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

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
	d.Settings.LogLimit = desired.Limit{Rate: 10, Per: time.Minute, Burst: 7}
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	d.Settings.VXLAN6 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan-v6.calico"}
	d.Settings.IPIP = &desired.IPIPAdmission{Device: "tunl0"}
	return d
}

// Guarded is Rich with host endpoints that have something in each pass.
func Guarded() desired.FirewallDelta {
	d := Rich()
	Protect(&d, "*", Endpoint{desired.PreDNAT: {Ingress: []view.Rule{DenyTo(tcp, 30080)}}, desired.Forward: {Ingress: []view.Rule{Anything}}, desired.Normal: {Ingress: []view.Rule{Anything}}})
	Protect(&d, "eth0", Endpoint{desired.Untracked: {Ingress: []view.Rule{AllowTo(udp, 53)}, Egress: []view.Rule{AllowFrom(udp, 53)}}})
	return d
}

// A driver that starts on what another of its kind left takes it over as it is.
func (k Kind) testRestartAdoptsWithoutWriting(t *testing.T) {
	ns := labtest.Enter(t)
	d := Guarded()
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

// All workloads of a list go to another, as a new policy has them do: the entries that lead to its chain stay as they are, and the rules
// are the new list's. What the chain counts is the new list's too. A driver that starts later does not know of it, and gives
// the list a chain of its own.
func (k Kind) testAListThatAllLeaveTogether(t *testing.T) {
	w := k.NewWorld(t)
	for _, port := range []string{":80", ":81"} {
		w.Listen(w.B, port)
	}
	w.Listen(w.A, ":80")
	w.Driver.Whole()
	before := view.PolicyList{ID: "before", Profiles: []string{"pro/all"}}
	after := view.PolicyList{ID: "after", Profiles: []string{"pro/all"}, Tiers: []view.TierPolicies{
		{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/s/new"}},
	}}
	pod := func(under view.PolicyList) desired.Workload {
		x := Under(under.ID)
		x.Endpoint = "k8s/test/pod"
		return x
	}
	move := func(from, to view.PolicyList, policies ...view.Policy) (c desired.FirewallDelta) {
		c = Firewall(map[string]desired.Workload{"cali2": pod(to)}, []view.PolicyList{to}, policies...)
		c.Settings = nil
		for _, d := range []desired.Direction{desired.Ingress, desired.Egress} {
			c.Chains.Remove(desired.ListChain(from.ID, d))
		}
		return c
	}
	entries := func() (out []string) {
		for line := range strings.Lines(w.Node.Run(t, k.List)) {
			if strings.Contains(line, "cali2") {
				out = append(out, line)
			}
		}
		return out
	}
	first := BothOpen()
	first.Workloads.Put("cali2", pod(before))
	for _, chain := range desired.ListChains(before) {
		first.Chains.Put(chain.Name, chain)
	}
	w.Apply(first)
	w.Passes(w.A, AddrB+":80", true, "under the list of before")
	led := entries()
	require.NotEmpty(t, led)

	w.Apply(move(before, after, policyOf("np/s/new", 81)))
	assert.Equal(t, led, entries(), "what leads to the chain")
	w.Passes(w.A, AddrB+":81", true, "the new policy allows it")
	w.Passes(w.A, AddrB+":80", false, "the new policy forbids it")
	w.Passes(w.B, AddrA+":80", true, "the policy is for the other")
	counted, err := w.Driver.Counters(context.Background())
	require.NoError(t, err)
	of := map[string]uint64{}
	for _, c := range counted {
		of[c.Chain+" "+c.Comment] += c.Packets
	}
	assert.NotZero(t, of["cali-tw-after end of tier default"], "%v", of)
	assert.Empty(t, w.Driver.Closed("cali2"))
	writes := w.Driver.Writes()
	w.Driver.Resync()
	w.Apply(desired.FirewallDelta{})
	assert.Equal(t, writes, w.Driver.Writes(), "nothing is found to differ")

	open, err := Dial(w.A, AddrB+":81", Patience)
	require.NoError(t, err)
	defer open.Close()
	later, moved := BothOpen(), move(before, after, policyOf("np/s/new", 81))
	maps.Copy(later.Chains.Set, moved.Chains.Set)
	maps.Copy(later.Workloads.Set, moved.Workloads.Set)
	require.NoError(t, w.Driver.Close())
	w.Driver = k.Open(t, w.Node)
	w.Driver.Whole()
	w.Apply(later)
	assert.True(t, Alive(open, Patience), "a restart cuts nothing")
	w.Passes(w.A, AddrB+":80", false, "nor opens anything")
	assert.NotEqual(t, led, entries(), "the list has its own chain")
	list := w.Node.Run(t, k.List)
	fresh := k.Open(t, w.Node)
	fresh.Whole()
	Apply(t, fresh, later)
	assert.Zero(t, fresh.Writes())
	assert.Equal(t, list, w.Node.Run(t, k.List), "and nothing is left of the other's")

	led = entries()
	w.Apply(move(after, before))
	assert.Equal(t, led, entries())
	w.Passes(w.A, AddrB+":80", true, "the policy is gone")
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
