package judge_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/judge"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func member(text string) view.Member { return view.Member{Prefix: netip.MustParsePrefix(text)} }

// policy puts a policy, and a list under whose only tier it stands, into a change.
func policy(c *desired.FirewallDelta, list string, p view.Policy) {
	for _, chain := range desired.PolicyChains(p, "") {
		c.Chains.Put(chain.Name, chain)
	}
	for _, chain := range desired.ListChains(view.PolicyList{ID: list, Tiers: []view.TierPolicies{
		{Name: "default", DefaultAction: view.Deny, Ingress: []string{p.ID}, Egress: []string{p.ID}},
	}}) {
		c.Chains.Put(chain.Name, chain)
	}
}

func workload(list string, addrs ...string) desired.Workload {
	w := desired.Workload{Endpoint: "k8s/test/" + list, Ingress: desired.ListChain(list, desired.Ingress), Egress: desired.ListChain(list, desired.Egress)}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, addr(a))
	}
	return w
}

func tcp(from, to string, port uint16) packet.Packet {
	return packet.Packet{Source: addr(from), Destination: addr(to), Protocol: 6, SourcePort: 40000, DestinationPort: port}
}

// small is a node with two workloads: a may send anything, b takes port 80 from the set s:clients.
func small() (*judge.Model, desired.FirewallDelta) {
	var c desired.FirewallDelta
	c.Settings = &desired.Settings{EndpointToHost: desired.HostAccept}
	policy(&c, "a", view.Policy{ID: "np/s/a", Ingress: []view.Rule{{Action: view.Deny}}, Egress: []view.Rule{{Action: view.Allow}}})
	policy(&c, "b", view.Policy{ID: "np/s/b", Ingress: []view.Rule{{
		Action: view.Allow, Protocol: 6, Source: view.Match{Sets: []string{"s:clients"}},
		Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 80}}},
	}}})
	c.Sets.Put("s:clients", desired.Set{Type: view.SetNet, Members: []view.Member{member("10.0.0.1/32"), member("192.168.0.0/16")}})
	c.Workloads.Put("calia", workload("a", "10.0.0.1"))
	c.Workloads.Put("calib", workload("b", "10.0.0.2"))
	m := judge.New()
	m.Host = map[netip.Addr]struct{}{addr("10.9.9.9"): {}}
	return m, c
}

func TestVerdicts(t *testing.T) {
	m, c := small()
	require.True(t, m.Update(c).All, "after a start all that is there is looked at")
	for _, x := range []struct {
		p    packet.Packet
		want judge.Outcome
		by   string
	}{
		{tcp("10.0.0.1", "10.0.0.2", 80), judge.Allowed, "np/s/b ingress 0"},
		{tcp("10.0.0.1", "10.0.0.2", 81), judge.Forbidden, "end of tier default"},
		{tcp("10.0.0.2", "10.0.0.1", 80), judge.Forbidden, "end of tier default"},
		{tcp("192.168.3.4", "10.0.0.2", 80), judge.Allowed, "np/s/b ingress 0"},
		{tcp("192.168.3.4", "10.0.0.1", 80), judge.Forbidden, "np/s/a ingress 0"},
		{tcp("10.0.0.1", "8.8.8.8", 53), judge.Allowed, "np/s/a egress 0"},
		{tcp("8.8.8.8", "9.9.9.9", 53), judge.Unjudged, ""},
		{tcp("10.9.9.9", "10.0.0.1", 80), judge.Unjudged, ""}, // the host reaches its workloads
		{tcp("10.0.0.1", "10.9.9.9", 80), judge.Allowed, "np/s/a egress 0"},
	} {
		v := m.Judge(x.p, false)
		assert.Equal(t, x.want, v.Outcome, "%+v: %+v", x.p, v)
		assert.Equal(t, x.by, v.By)
	}
	next := desired.Settings{EndpointToHost: desired.HostDrop}
	assert.True(t, m.Update(desired.FirewallDelta{Settings: &next}).All)
	assert.Equal(t, judge.Forbidden, m.Judge(tcp("10.0.0.1", "10.9.9.9", 80), false).Outcome)
	vxlan := packet.Packet{Source: addr("10.0.0.1"), Destination: addr("8.8.8.8"), Protocol: 17, DestinationPort: 4789}
	assert.Equal(t, "VXLAN made by a workload", m.Judge(vxlan, false).By)
}

// A connection of the node is forbidden if it is whichever interface it goes by.
func TestVerdictsOfHosts(t *testing.T) {
	m, c := small()
	to := func(action view.Action, port uint16) view.Rule {
		return view.Rule{Action: action, Protocol: 6, Destination: view.Match{Ports: []view.PortRange{{First: port, Last: port}}}}
	}
	endpoint := func(name string, in []view.Rule) (h desired.Host) {
		p := view.Policy{ID: "gnp/" + name, Ingress: in}
		l := view.PolicyList{ID: name, Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{p.ID}}}, Profiles: []string{"pro/open"}}
		for _, chains := range [][2]desired.Chain{desired.PolicyChains(p, ""), desired.PassChains(l, desired.Normal)} {
			for _, chain := range chains {
				c.Chains.Put(chain.Name, chain)
			}
		}
		return desired.Host{Endpoint: name, Normal: desired.Ways{
			Ingress: desired.PassChain(name, desired.Normal, desired.Ingress), Egress: desired.PassChain(name, desired.Normal, desired.Egress),
		}}
	}
	open := desired.PolicyChains(view.Policy{ID: "pro/open", Ingress: []view.Rule{{Action: view.Allow}}, Egress: []view.Rule{{Action: view.Allow}}}, "")
	for _, chain := range append(desired.FailsafeChains([]desired.Failsafe{{Protocol: 6, Port: 22}}, nil), open[:]...) {
		c.Chains.Put(chain.Name, chain)
	}
	all, own := endpoint("all", []view.Rule{to(view.Allow, 80), to(view.Allow, 81)}), endpoint("own", []view.Rule{to(view.Allow, 80), to(view.Allow, 82)})
	c.Hosts.Put("eth0", own)
	m.Update(c)
	in := func(port uint16) judge.Outcome { return m.Judge(tcp("8.8.8.8", "10.9.9.9", port), false).Outcome }
	assert.Equal(t, judge.Allowed, in(83), "it may have come by an interface without an endpoint")

	var d desired.FirewallDelta
	d.Hosts.Put(desired.AnyInterface, all)
	require.True(t, m.Update(d).All)
	for port, want := range map[uint16]judge.Outcome{80: judge.Allowed, 81: judge.Allowed, 82: judge.Allowed, 83: judge.Forbidden, 22: judge.Allowed} {
		assert.Equal(t, want, in(port), "port %d", port)
	}
	assert.Equal(t, judge.Verdict{Outcome: judge.Forbidden, Endpoint: "host/all", By: "end of tier default"}, m.Judge(tcp("8.8.8.8", "10.9.9.9", 83), false))
	assert.Equal(t, judge.Allowed, m.Judge(tcp("10.9.9.9", "8.8.8.8", 83), false).Outcome, "no policy for this direction")
	assert.Equal(t, judge.Unjudged, m.Judge(tcp("10.9.9.9", "10.9.9.9", 83), false).Outcome, "the node with itself")
	assert.Equal(t, judge.Unjudged, m.Judge(tcp("10.9.9.9", "10.0.0.1", 83), false).Outcome, "the host reaches its workloads")
	tunnel := tcp("8.8.8.8", "10.9.9.9", 0)
	tunnel.Protocol = 4
	assert.Equal(t, judge.Allowed, m.Judge(tunnel, false).Outcome, "between nodes")

	d = desired.FirewallDelta{}
	for _, chain := range desired.PolicyChains(view.Policy{ID: "gnp/all", Ingress: []view.Rule{to(view.Allow, 80)}}, "") {
		d.Chains.Put(chain.Name, chain)
	}
	require.True(t, m.Update(d).All, "whoever talks with the node may be concerned")
	assert.Equal(t, judge.Forbidden, in(81))
	d = desired.FirewallDelta{}
	d.Hosts.Put("eth0", desired.Host{Endpoint: "own", ClosedBecause: "typha is away"})
	m.Update(d)
	assert.Equal(t, judge.Unjudged, in(81), "one that is closed cuts nothing")
	assert.Equal(t, judge.Allowed, in(80))
}

func TestClosedIsNotForbidden(t *testing.T) {
	m, c := small()
	m.Update(c)
	var d desired.FirewallDelta
	d.Workloads.Put("calib", desired.Workload{Endpoint: "k8s/test/b", Addresses: []netip.Addr{addr("10.0.0.2")}})
	m.Update(d)
	assert.Equal(t, judge.Unjudged, m.Judge(tcp("10.0.0.1", "10.0.0.2", 80), false).Outcome, "it is dropped as long as it is closed")
	d = desired.FirewallDelta{}
	d.Workloads.Put("calib", workload("b", "10.0.0.2"))
	assert.Equal(t, judge.Impact{Addresses: set("10.0.0.2")}, m.Update(d), "and judged when it opens")
	d = desired.FirewallDelta{}
	d.Sets.Remove("s:clients")
	m.Update(d)
	assert.Equal(t, judge.Unjudged, m.Judge(tcp("10.0.0.1", "10.0.0.2", 80), false).Outcome, "a set that is not known")
}

func set(all ...string) map[netip.Addr]struct{} {
	out := map[netip.Addr]struct{}{}
	for _, a := range all {
		out[addr(a)] = struct{}{}
	}
	return out
}

func TestImpact(t *testing.T) {
	members := func(added, removed []view.Member) desired.FirewallDelta {
		return desired.FirewallDelta{Members: map[string]desired.SetDelta{"s:clients": {Added: added, Removed: removed}}}
	}
	chains := func(p view.Policy) (d desired.FirewallDelta) {
		for _, c := range desired.PolicyChains(p, "") {
			d.Chains.Put(c.Name, c)
		}
		return d
	}
	workloads := func(set map[string]desired.Workload, removed ...string) (d desired.FirewallDelta) {
		for name, w := range set {
			d.Workloads.Put(name, w)
		}
		for _, name := range removed {
			d.Workloads.Remove(name)
		}
		return d
	}
	out := view.Rule{Action: view.Allow, Protocol: 17}
	for name, c := range map[string]struct {
		change desired.FirewallDelta
		want   judge.Impact
	}{
		"nothing":                 {},
		"one more may":            {change: members([]view.Member{member("10.0.0.7/32")}, nil)},
		"one less may":            {change: members(nil, []view.Member{member("10.0.0.1/32")}), want: judge.Impact{Addresses: set("10.0.0.1")}},
		"a network less":          {change: members(nil, []view.Member{member("192.168.0.0/16")}), want: judge.Impact{Addresses: set("10.0.0.2")}},
		"a rule more that allows": {change: chains(view.Policy{ID: "np/s/a", Ingress: []view.Rule{out, {Action: view.Deny}}, Egress: []view.Rule{{Action: view.Allow}}})},
		"a rule less that denies": {change: chains(view.Policy{ID: "np/s/a", Egress: []view.Rule{{Action: view.Allow}}})},
		"a rule less that allows": {change: chains(view.Policy{ID: "np/s/a", Ingress: []view.Rule{{Action: view.Deny}}}), want: judge.Impact{Addresses: set("10.0.0.1")}},
		"a rule that passes":      {change: chains(view.Policy{ID: "np/s/a", Ingress: []view.Rule{{Action: view.Pass}, {Action: view.Deny}}, Egress: []view.Rule{{Action: view.Allow}}}), want: judge.Impact{Addresses: set("10.0.0.1")}},
		"a new workload":          {change: workloads(map[string]desired.Workload{"calic": workload("b", "10.0.0.3")})},
		"another list":            {change: workloads(map[string]desired.Workload{"calia": workload("b", "10.0.0.1")}), want: judge.Impact{Addresses: set("10.0.0.1")}},
		"a workload that goes":    {change: workloads(nil, "calia")},
		"an address that goes":    {change: workloads(map[string]desired.Workload{"calia": workload("a", "10.0.0.5")}), want: judge.Impact{Addresses: set("10.0.0.5")}},
	} {
		t.Run(name, func(t *testing.T) {
			m, all := small()
			m.Update(all)
			assert.Equal(t, c.want, m.Update(c.change))
		})
	}
}

// A world of random policies, for which any change must name every connection that it comes to forbid.
type world struct {
	*rand.Rand
	sets      map[string]map[view.Member]bool
	policies  map[string]view.Policy
	lists     map[string]view.PolicyList
	workloads map[string]desired.Workload
}

var (
	addresses = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.4", "fd00::1", "fd00::2"}
	nets      = []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/24", "10.0.0.0/23", "10.0.1.4/32", "fd00::1/128", "fd00::/64", "0.0.0.0/0"}
)

func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }

func (w *world) rule(set string) view.Rule {
	r := view.Rule{Action: pick(w.Rand, []view.Action{view.Allow, view.Allow, view.Deny, view.Pass, view.Log}), Protocol: pick(w.Rand, []view.Protocol{0, 0, 6, 17})}
	side := &r.Source
	if w.IntN(2) == 0 {
		side = &r.Destination
	}
	switch w.IntN(5) {
	case 0:
		side.Sets = []string{set}
	case 1:
		side.NotSets = []string{set}
	case 2:
		side.Nets = []netip.Prefix{netip.MustParsePrefix(pick(w.Rand, nets))}
	case 3:
		side.NotNets = []netip.Prefix{netip.MustParsePrefix(pick(w.Rand, nets))}
	}
	if r.Protocol != 0 && w.IntN(2) == 0 {
		r.Destination.Ports = []view.PortRange{{First: 80, Last: uint16(80 + w.IntN(2))}}
	}
	return r
}

func (w *world) policy(id string) view.Policy {
	rules := func() (out []view.Rule) {
		for range w.IntN(4) {
			out = append(out, w.rule(fmt.Sprintf("s:%d", w.IntN(3))))
		}
		return out
	}
	return view.Policy{ID: id, Tier: "default", Ingress: rules(), Egress: rules()}
}

func (w *world) list(id string) view.PolicyList {
	l := view.PolicyList{ID: id, Profiles: []string{"pro/p"}}
	for i := range w.IntN(3) {
		some := func() (out []string) {
			for id := range 4 {
				if w.IntN(2) == 0 {
					out = append(out, fmt.Sprintf("np/n/p%d", id))
				}
			}
			return out
		}
		l.Tiers = append(l.Tiers, view.TierPolicies{Name: fmt.Sprint("t", i), DefaultAction: pick(w.Rand, []view.Action{view.Deny, view.Pass}), Ingress: some(), Egress: some()})
	}
	return l
}

// whole is everything, as a change from nothing.
func (w *world) whole() (d desired.FirewallDelta) {
	d.Settings = &desired.Settings{EndpointToHost: desired.HostAccept}
	for id, members := range w.sets {
		d.Sets.Put(id, desired.Set{Type: view.SetNet, Members: slices.SortedFunc(maps.Keys(members), view.Member.Compare)})
	}
	for _, p := range w.policies {
		for _, c := range desired.PolicyChains(p, "") {
			d.Chains.Put(c.Name, c)
		}
	}
	for _, l := range w.lists {
		for _, c := range desired.ListChains(l) {
			d.Chains.Put(c.Name, c)
		}
	}
	for name, x := range w.workloads {
		d.Workloads.Put(name, x)
	}
	return d
}

// step changes something.
func (w *world) step() (d desired.FirewallDelta) {
	switch w.IntN(5) {
	case 0, 1:
		id := fmt.Sprintf("s:%d", w.IntN(3))
		var c desired.SetDelta
		for range 1 + w.IntN(3) {
			m := member(pick(w.Rand, nets))
			if w.sets[id][m] {
				delete(w.sets[id], m)
				c.Removed = append(c.Removed, m)
				c.Added = slices.DeleteFunc(c.Added, func(x view.Member) bool { return x == m })
			} else {
				w.sets[id][m] = true
				c.Added = append(c.Added, m)
				c.Removed = slices.DeleteFunc(c.Removed, func(x view.Member) bool { return x == m })
			}
		}
		d.Members = map[string]desired.SetDelta{id: c}
	case 2:
		id := fmt.Sprintf("np/n/p%d", w.IntN(4))
		w.policies[id] = w.policy(id)
		for _, c := range desired.PolicyChains(w.policies[id], "") {
			d.Chains.Put(c.Name, c)
		}
	case 3:
		id := fmt.Sprintf("l%d", w.IntN(2))
		w.lists[id] = w.list(id)
		for _, c := range desired.ListChains(w.lists[id]) {
			d.Chains.Put(c.Name, c)
		}
	case 4:
		name := fmt.Sprintf("cali%d", w.IntN(2))
		w.workloads[name] = workload(fmt.Sprintf("l%d", w.IntN(2)), w.workloads[name].Addresses[0].String(), w.workloads[name].Addresses[1].String())
		d.Workloads.Put(name, w.workloads[name])
	}
	return d
}

func TestImpactNamesAllThatComesToBeForbidden(t *testing.T) {
	forbidden := 0
	for seed := range uint64(40) {
		w := &world{
			Rand: rand.New(rand.NewPCG(seed, 1)), sets: map[string]map[view.Member]bool{"s:0": {}, "s:1": {}, "s:2": {}},
			policies: map[string]view.Policy{}, lists: map[string]view.PolicyList{},
			workloads: map[string]desired.Workload{"cali0": workload("l0", "10.0.0.1", "fd00::1"), "cali1": workload("l1", "10.0.0.2", "fd00::2")},
		}
		w.policies["pro/p"] = view.Policy{ID: "pro/p", Ingress: []view.Rule{{Action: view.Allow}}, Egress: []view.Rule{{Action: view.Allow}}}
		for i := range 4 {
			id := fmt.Sprintf("np/n/p%d", i)
			w.policies[id] = w.policy(id)
		}
		for _, id := range []string{"l0", "l1"} {
			w.lists[id] = w.list(id)
		}
		m := judge.New()
		m.Update(w.whole())
		for range 30 {
			before := verdicts(m)
			change := w.step()
			impact := m.Update(change)
			fresh := judge.New()
			fresh.Update(w.whole())
			after := verdicts(m)
			require.Equal(t, verdicts(fresh), after, "seed %d: what was added up is what it is from scratch; the change was %+v", seed, change)
			for p, v := range after {
				if before[p].Outcome != judge.Forbidden && v.Outcome == judge.Forbidden {
					forbidden++
					_, from := impact.Addresses[p.Source]
					_, to := impact.Addresses[p.Destination]
					require.True(t, impact.All || from || to, "seed %d: %+v is forbidden now (%+v), and %+v does not tell; the change was %+v", seed, p, v, impact, change)
				}
			}
		}
	}
	require.Greater(t, forbidden, 500)
}

func verdicts(m *judge.Model) map[packet.Packet]judge.Verdict {
	out := map[packet.Packet]judge.Verdict{}
	for _, from := range addresses {
		for _, to := range addresses {
			for _, proto := range []view.Protocol{6, 17} {
				for _, port := range []uint16{80, 81} {
					p := tcp(from, to, port)
					p.Protocol = proto
					if p.Source.Is4() == p.Destination.Is4() {
						out[p] = m.Judge(p, false)
					}
				}
			}
		}
	}
	return out
}

func BenchmarkJudge(b *testing.B) {
	m, c := small()
	var members []view.Member
	for i := range 100_000 {
		members = append(members, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)})
	}
	c.Sets.Put("s:clients", desired.Set{Type: view.SetNet, Members: members})
	m.Update(c)
	p := tcp("10.1.134.1", "10.0.0.2", 80)
	require.Equal(b, judge.Allowed, m.Judge(p, false).Outcome)
	for b.Loop() {
		m.Judge(p, false)
	}
}
