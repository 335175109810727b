//go:build lab

package rulestest

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/conntrack"
	"github.com/muslin-net/muslin/felix/desired"
)

// A connection that is marked as cut ends, in both directions, and only that one, in either family.
func (k Kind) testCutFlows(t *testing.T) {
	w := k.NewWorld(t)
	w.Listen(w.B, ":80")
	w.Listen(w.B, ":81")
	w.Listen(w.Node, ":82")
	d := BothOpen()
	d.Settings.EndpointToHost = desired.HostAccept
	w.Apply(d)
	dial := func(to string) net.Conn {
		c, err := Dial(w.A, to, Patience)
		require.NoError(t, err, to)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	families := []struct{ name, pod, node string }{{"IPv4", AddrB, NodeAddr}, {"IPv6", "[" + SixB + "]", "[" + NodeSix + "]"}}
	var cut, host, other [2]net.Conn
	for i, f := range families {
		cut[i], other[i], host[i] = dial(f.pod+":80"), dial(f.pod+":81"), dial(f.node+":82")
	}
	tracked, err := conntrack.Open()
	require.NoError(t, err)
	defer func() { _ = tracked.Close() }()
	flows, err := tracked.Flows(t.Context(), conntrack.Select{}, func(f *conntrack.Flow) bool {
		return f.Original.DestinationPort == 80 || f.Original.DestinationPort == 82
	})
	require.NoError(t, err)
	require.Len(t, flows, 4)
	require.NoError(t, tracked.Mark(t.Context(), flows, desired.ConnMarkCut, desired.ConnMarkCut))
	for i, f := range families {
		require.True(t, Alive(cut[i], Patience), "%s: nothing is cut while the setting is off", f.name)
	}
	s := *d.Settings
	s.CutFlows = true
	w.Apply(desired.FirewallDelta{Settings: &s})
	for i, f := range families {
		assert.False(t, Alive(cut[i], Brief), "%s: cut", f.name)
		assert.False(t, Alive(host[i], Brief), "%s: cut, to the host", f.name)
		assert.True(t, Alive(other[i], Patience), "%s: another connection", f.name)
	}
}

// Each kind of criterion, with one packet that matches and one that does not.
func (k Kind) testMatches(t *testing.T) {
	w := k.NewWorld(t)
	for _, p := range []string{":80", ":81", ":1001", ":1003", ":1035", ":2000"} {
		w.Listen(w.B, p)
	}
	var many []view.PortRange
	for p := uint16(1001); p < 1041; p += 2 {
		many = append(many, view.PortRange{First: p, Last: p})
	}
	const tcp = 6
	b4, b6 := AddrB, "["+SixB+"]"
	for _, c := range []struct {
		name       string
		match      view.Rule
		pass, fail []string
	}{
		{"more ports than one rule takes", view.Rule{Protocol: tcp, Destination: view.Match{Ports: many}}, []string{b4 + ":1001", b4 + ":1035", b6 + ":1003"}, []string{b4 + ":80", b6 + ":80"}},
		{"none of many ports", view.Rule{Protocol: tcp, Destination: view.Match{NotPorts: many}}, []string{b4 + ":80", b6 + ":80"}, []string{b4 + ":1001", b4 + ":1035"}},
		{"ports of any protocol", view.Rule{Destination: view.Match{Ports: Port(80)}}, []string{b4 + ":80"}, []string{b4 + ":81"}},
		{"not UDP", view.Rule{NotProtocol: 17}, []string{b4 + ":80"}, nil},
		{"not TCP", view.Rule{NotProtocol: tcp}, nil, []string{b4 + ":80"}},
		{"prefixes on both sides", view.Rule{Protocol: tcp, Source: view.Match{Nets: Nets("10.0.1.0/31", "10.9.0.0/16"), NotNets: Nets("10.0.1.4/32", "10.0.1.5/32")}, Destination: view.Match{Nets: Nets("10.0.1.2/32")}}, []string{b4 + ":80"}, []string{b6 + ":80"}},
		{"inside a prefix, outside a part", view.Rule{Protocol: tcp, Source: view.Match{Nets: Nets("10.0.0.0/8"), NotNets: Nets("10.0.1.1/32")}}, nil, []string{b4 + ":80"}},
		{"everything and nothing", view.Rule{Protocol: tcp, Source: view.Match{Nets: Nets("0.0.0.0/0", "::/0")}}, []string{b4 + ":80", b6 + ":80"}, nil},
		{"a set with everything", view.Rule{Protocol: tcp, Source: view.Match{Sets: []string{"s:everything"}}}, []string{b4 + ":80", b6 + ":80"}, nil},
		{"not in a set with everything", view.Rule{Protocol: tcp, Source: view.Match{NotSets: []string{"s:everything"}}}, nil, []string{b4 + ":80", b6 + ":80"}},
		{"a service", view.Rule{Protocol: tcp, Destination: view.Match{IPPortSets: []string{"svc:b"}}}, []string{b4 + ":80"}, []string{b4 + ":81", b6 + ":80"}},
		{"not a named port", view.Rule{Protocol: tcp, Destination: view.Match{NotNamedPorts: []string{"svc:b"}}}, []string{b4 + ":81"}, []string{b4 + ":80"}},
		{"source ports", view.Rule{Protocol: tcp, Source: view.Match{Ports: []view.PortRange{{First: 1024, Last: 65535}}}}, []string{b4 + ":80"}, nil},
		{"no such source port", view.Rule{Protocol: tcp, Source: view.Match{NotPorts: []view.PortRange{{First: 1024, Last: 65535}}}}, nil, []string{b4 + ":80"}},
	} {
		rule := c.match
		rule.Action = view.Allow
		list := view.PolicyList{ID: c.name, Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/s/m"}}}, Profiles: []string{"pro/all"}}
		d := Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under(c.name)}, append(OpenLists, list), AllowAll, view.Policy{ID: "np/s/m", Ingress: []view.Rule{rule}})
		d.Sets.Put("s:everything", desired.Set{Type: view.SetNet, Members: Members("0.0.0.0/0", "10.0.0.0/8", "::/0")})
		d.Sets.Put("svc:b", desired.Set{Type: view.SetIPPort, Members: []view.Member{{Prefix: Nets(AddrB + "/32")[0], Protocol: tcp, Port: 80}}})
		w.Apply(d)
		for _, to := range c.pass {
			w.Passes(w.A, to, true, c.name)
		}
		for _, to := range c.fail {
			w.Passes(w.A, to, false, c.name)
		}
	}
	echo := func(m view.Rule, want4, want6 bool) {
		t.Helper()
		m.Action = view.Allow
		list := view.PolicyList{ID: "echo", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/s/m"}}}}
		w.Apply(Firewall(map[string]desired.Workload{"cali2": Under("echo")}, append(OpenLists, list), AllowAll, view.Policy{ID: "np/s/m", Ingress: []view.Rule{m}}))
		for to, want := range map[string]bool{AddrB: want4, SixB: want6} {
			ping := "ping -c 1 -W 1 "
			if want {
				ping = "ping -c 1 -W 30 "
			}
			_, err := w.A.Try(ping + to)
			assert.Equal(t, want, err == nil, "%s: %+v", to, m)
		}
	}
	code, another := uint8(0), uint8(1)
	echo(view.Rule{Protocol: 1, ICMP: &view.ICMP{Type: 8}}, true, false)
	echo(view.Rule{Protocol: 58, ICMP: &view.ICMP{Type: 128, Code: &code}}, false, true)
	echo(view.Rule{Protocol: 1, ICMP: &view.ICMP{Type: 8, Code: &another}}, false, false)
	echo(view.Rule{Protocol: 1, NotICMP: &view.ICMP{Type: 8}}, false, false)
	echo(view.Rule{Protocol: 58, NotICMP: &view.ICMP{Type: 8}}, false, true)
}

// Rules that decide count the first packets of connections, by where they come from; so do those of a staged policy, which decide
// nothing, also where something that they name is not known.
func (k Kind) testCounters(t *testing.T) {
	w := k.NewWorld(t)
	w.Listen(w.B, ":80")
	web := view.Policy{ID: "np/s/web", Ingress: []view.Rule{
		{Action: view.Log},
		{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: Port(80)}},
		{Action: view.Deny, Protocol: 6, Destination: view.Match{Ports: Port(81)}},
	}}
	try := view.Policy{ID: "snp/s/try", Staged: true, Ingress: []view.Rule{
		{Action: view.Log},
		{Action: view.Deny, Source: view.Match{Sets: []string{"s:unknown"}}},
		{Action: view.Deny, Protocol: 6, Destination: view.Match{Ports: Port(80)}},
		{Action: view.Allow},
	}}
	list := view.PolicyList{ID: "web", Tiers: []view.TierPolicies{
		{Name: "trial", DefaultAction: view.Deny, Ingress: []string{try.ID}},
		{Name: "default", DefaultAction: view.Deny, Ingress: []string{"snp/s/unknown", web.ID, try.ID}},
	}}
	w.Apply(Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under("web")}, append(OpenLists, list), try, web, AllowAll))
	for _, to := range []string{AddrB + ":80", AddrB + ":80", "[" + SixB + "]:80"} {
		w.Passes(w.A, to, true, "allowed")
	}
	w.Passes(w.A, AddrB+":81", false, "denied")
	counters, err := w.Driver.Counters(t.Context())
	require.NoError(t, err)
	packets := map[string]uint64{}
	for _, c := range counters {
		packets[c.Chain+": "+c.Comment] = c.Packets
	}
	chain := desired.PolicyChain(web.ID, desired.Ingress)
	assert.Equal(t, uint64(3), packets[chain+": np/s/web ingress 1"], "%v", packets)
	assert.NotZero(t, packets[chain+": np/s/web ingress 2"], "%v", packets)
	assert.NotContains(t, packets, chain+": np/s/web ingress 0", "decides nothing")
	chain = desired.PolicyChain(try.ID, desired.Ingress)
	assert.Equal(t, uint64(3), packets[chain+": snp/s/try ingress 2"], "in the tier of its own, and not behind what has decided: %v", packets)
	assert.NotZero(t, packets[chain+": snp/s/try ingress 3"], "%v", packets)
}
