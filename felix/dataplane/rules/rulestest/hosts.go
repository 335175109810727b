//go:build lab

package rulestest

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

const (
	nodeSix, outsideSix = "[fd09::1]", "[fd09::2]"
	tcp, udp            = 6, 17
)

// Endpoint is what a host endpoint's passes say: policies by pass, each in a tier of its own that ends as it does in Calico.
type Endpoint map[desired.HostPass]view.Policy

// Protect adds a host endpoint. Failsafes are TCP 22 in and TCP 179 out.
func Protect(c *desired.FirewallDelta, iface string, e Endpoint) {
	h := desired.Host{Endpoint: "hep-" + strings.ReplaceAll(iface, "*", "all")}
	for pass := desired.Untracked; pass <= desired.Normal; pass++ {
		p, there := e[pass]
		if !there && pass != desired.Normal {
			continue
		}
		p.ID = map[bool]string{false: "gnp/", true: "sgnp/"}[p.Staged] + h.Endpoint + "." + pass.String()
		p.DoNotTrack, p.PreDNAT = pass == desired.Untracked, pass == desired.PreDNAT
		tier := view.TierPolicies{Name: "default", DefaultAction: view.Deny}
		if p.Ingress != nil {
			tier.Ingress = []string{p.ID}
		}
		if p.Egress != nil {
			tier.Egress = []string{p.ID}
		}
		list := view.PolicyList{ID: h.Endpoint, Tiers: []view.TierPolicies{tier}}
		var ways, counted desired.Ways
		for d, chain := range desired.PassChains(list, pass) {
			to := &ways
			switch {
			case len(chain.Rules) == 0:
				continue
			case desired.Counts(list, pass, desired.Direction(d)):
				to = &counted
			}
			c.Chains.Put(chain.Name, chain)
			if desired.Direction(d) == desired.Ingress {
				to.Ingress = chain.Name
			} else {
				to.Egress = chain.Name
			}
		}
		if pass != desired.Normal {
			h.Counted[pass] = counted
		}
		for d, chain := range desired.PolicyChains(p, "") {
			if pass == desired.Normal && desired.Direction(d) == desired.Egress {
				chain.In |= desired.Mangle
			}
			c.Chains.Put(chain.Name, chain)
		}
		switch pass {
		case desired.Untracked:
			h.Untracked = ways
		case desired.PreDNAT:
			h.PreDNAT = ways
		case desired.Forward:
			h.Forward = ways
		default:
			h.Normal = ways
		}
	}
	for _, chain := range desired.FailsafeChains([]desired.Failsafe{{Protocol: tcp, Port: 22}}, []desired.Failsafe{{Protocol: tcp, Port: 179}}) {
		c.Chains.Put(chain.Name, chain)
	}
	c.Hosts.Put(iface, h)
}

// Hosting is open pods, and host endpoints.
func Hosting(endpoints map[string]Endpoint) desired.FirewallDelta {
	c := BothOpen()
	c.Settings.EndpointToHost = desired.HostAccept
	for iface, e := range endpoints {
		Protect(&c, iface, e)
	}
	return c
}

// AllowTo allows a port of the destination.
func AllowTo(protocol view.Protocol, p uint16) view.Rule {
	return view.Rule{Action: view.Allow, Protocol: protocol, Destination: view.Match{Ports: Port(p)}}
}

// DenyTo denies one.
func DenyTo(protocol view.Protocol, p uint16) view.Rule {
	r := AllowTo(protocol, p)
	r.Action = view.Deny
	return r
}

// AllowFrom allows a port of the source.
func AllowFrom(protocol view.Protocol, p uint16) view.Rule {
	return view.Rule{Action: view.Allow, Protocol: protocol, Source: view.Match{Ports: Port(p)}}
}

// Anything allows everything.
var Anything = view.Rule{Action: view.Allow}

func (w *World) listenOn(in *labtest.Namespace, ports ...string) {
	for _, p := range ports {
		w.Listen(in, p)
	}
}

func (k Kind) testHostEndpointProtectsTheHost(t *testing.T) {
	w := k.NewWorld(t)
	w.listenOn(w.Node, ":22", ":80", ":81")
	w.listenOn(w.Outside, ":80", ":81", ":179")
	w.listenOn(w.B, ":80", ":81")
	w.Apply(Hosting(nil))
	idle := w.Node.Run(t, k.List)
	w.Passes(w.Outside, NodeAddr+":81", true, "no host endpoint, no policy")
	open, err := Dial(w.Outside, NodeAddr+":81", Patience)
	require.NoError(t, err)
	defer open.Close()

	c := Hosting(map[string]Endpoint{"up0": {desired.Normal: {Ingress: []view.Rule{AllowTo(tcp, 80)}, Egress: []view.Rule{AllowTo(tcp, 80)}}}})
	w.Apply(c)
	for _, host := range []string{NodeAddr, nodeSix} {
		w.Passes(w.Outside, host+":80", true, "allowed")
		w.Passes(w.Outside, host+":81", false, "end of tier")
		w.Passes(w.Outside, host+":22", true, "failsafe in")
	}
	for _, out := range []string{OutsideAddr, outsideSix} {
		w.Passes(w.Node, out+":80", true, "allowed")
		w.Passes(w.Node, out+":81", false, "end of tier")
		w.Passes(w.Node, out+":179", true, "failsafe out")
	}
	assert.True(t, Alive(open, Patience), "what is established goes on")
	w.Passes(w.Node, "127.0.0.1:81", true, "another interface")
	w.Passes(w.A, NodeAddr+":81", true, "workloads are under their own policy")
	w.Passes(w.Node, AddrB+":81", true, "the host reaches its workloads")
	w.Passes(w.Outside, AddrB+":81", true, "no policy about what is forwarded")
	w.Passes(w.A, OutsideAddr+":81", true, "no policy about what is forwarded")

	w.Node.Run(t, "ip -6 neigh flush dev up0; ip neigh flush dev up0")
	w.Outside.Run(t, "ip -6 neigh flush dev eth0; ip neigh flush dev eth0")
	w.Passes(w.Outside, nodeSix+":22", true, "neighbours are found")
	w.Passes(w.Node, outsideSix+":179", true, "neighbours are found")

	closed := desired.FirewallDelta{}
	closed.Hosts.Put("up0", desired.Host{Endpoint: "hep-up0", ClosedBecause: "profile x is not known"})
	w.Apply(closed)
	for _, host := range []string{NodeAddr, nodeSix} {
		w.Passes(w.Outside, host+":80", false, "closed")
		w.Passes(w.Outside, host+":22", true, "failsafe in")
	}
	w.Passes(w.Node, OutsideAddr+":80", false, "closed")
	w.Passes(w.Node, OutsideAddr+":179", true, "failsafe out")
	assert.True(t, Alive(open, Patience), "what is established goes on")

	unknown := desired.FirewallDelta{}
	unknown.Hosts.Put("up0", desired.Host{Endpoint: "hep-up0", Normal: desired.Ways{Ingress: "cali-hep-normal-in-later", Egress: "cali-hep-normal-out-later"}})
	w.Apply(unknown)
	w.Passes(w.Outside, NodeAddr+":80", false, "policy that is not there")
	w.Passes(w.Outside, NodeAddr+":22", true, "failsafe in")
	later := desired.FirewallDelta{}
	for _, chain := range desired.PassChains(view.PolicyList{ID: "later", Profiles: []string{"pro/all"}}, desired.Normal) {
		later.Chains.Put(chain.Name, chain)
	}
	for _, chain := range desired.PolicyChains(AllowAll, "") {
		chain.In |= desired.Mangle
		later.Chains.Put(chain.Name, chain)
	}
	w.Apply(later)
	w.Passes(w.Outside, NodeAddr+":80", true, "it came: a profile decides")
	w.Passes(w.Node, OutsideAddr+":81", true, "it came: a profile decides")

	gone := Hosting(nil)
	gone.Hosts.Remove("up0")
	for name := range c.Chains.Set {
		if _, still := gone.Chains.Set[name]; !still {
			gone.Chains.Remove(name)
		}
	}
	for name := range later.Chains.Set {
		if _, still := gone.Chains.Set[name]; !still {
			gone.Chains.Remove(name)
		}
	}
	w.Driver.Whole()
	w.Apply(gone)
	w.Passes(w.Outside, NodeAddr+":81", true, "no host endpoint, no policy")
	assert.Equal(t, idle, w.Node.Run(t, k.List), "nothing is left that costs")
}

func (k Kind) testHostEndpointOfAllInterfaces(t *testing.T) {
	w := k.NewWorld(t)
	w.listenOn(w.Node, ":80", ":81")
	w.listenOn(w.B, ":81")
	all := Endpoint{desired.Normal: {Ingress: []view.Rule{AllowTo(tcp, 80)}, Egress: []view.Rule{Anything}}}
	w.Apply(Hosting(map[string]Endpoint{"*": all}))
	for _, host := range []string{NodeAddr, nodeSix} {
		w.Passes(w.Outside, host+":80", true, "allowed")
		w.Passes(w.Outside, host+":81", false, "end of tier")
	}
	w.Passes(w.Node, "127.0.0.1:81", false, "loopback is an interface")
	w.Passes(w.Node, "127.0.0.1:80", true, "allowed")
	w.Passes(w.A, NodeAddr+":81", true, "workloads are under their own policy")
	w.Passes(w.Node, AddrB+":81", true, "the host reaches its workloads")

	own := Endpoint{desired.Normal: {Ingress: []view.Rule{AllowTo(tcp, 81)}, Egress: []view.Rule{Anything}}}
	w.Apply(Hosting(map[string]Endpoint{"*": all, "up0": own, "lo": {desired.Normal: {Ingress: []view.Rule{Anything}, Egress: []view.Rule{Anything}}}}))
	w.Passes(w.Outside, NodeAddr+":81", true, "an endpoint of its own replaces that of all interfaces")
	w.Passes(w.Outside, NodeAddr+":80", false, "an endpoint of its own replaces that of all interfaces")
	w.Passes(w.Node, "127.0.0.1:81", true, "an endpoint of its own")
}

func (k Kind) testPreDNAT(t *testing.T) {
	w := k.NewWorld(t)
	w.listenOn(w.Node, ":22", ":81", ":82")
	w.listenOn(w.B, ":80", ":81")
	w.Node.Run(t, `
		nft 'table ip ports { chain in { type nat hook prerouting priority -100; ip daddr 192.168.9.1 tcp dport { 30080, 30081 } dnat to 10.0.1.2:80; }; }'
		nft 'table ip6 ports { chain in { type nat hook prerouting priority -100; ip6 daddr fd09::1 tcp dport { 30080, 30081 } dnat to [fd00:1::2]:80; }; }'`)
	early := view.Policy{Ingress: []view.Rule{DenyTo(tcp, 30080), DenyTo(tcp, 22), AllowTo(tcp, 81)}}
	closed := view.Policy{Ingress: []view.Rule{}, Egress: []view.Rule{Anything}}
	w.Apply(Hosting(map[string]Endpoint{"up0": {desired.PreDNAT: early, desired.Normal: closed}}))
	for _, host := range []string{NodeAddr, nodeSix} {
		w.Passes(w.Outside, host+":30080", false, "denied by the port before it is translated")
		w.Passes(w.Outside, host+":30081", true, "no rule about it")
		w.Passes(w.Outside, host+":22", true, "failsafe in")
		w.Passes(w.Outside, host+":81", true, "allowed is allowed to the host too")
		w.Passes(w.Outside, host+":82", false, "left to the normal policy")
	}
	w.Passes(w.Outside, AddrB+":80", true, "not by the port of the host")
	w.Passes(w.A, NodeAddr+":30080", true, "by another interface")
	w.Passes(w.Node, "127.0.0.1:82", true, "another interface")

	w.Apply(func() desired.FirewallDelta {
		c := Hosting(map[string]Endpoint{"*": {desired.PreDNAT: early, desired.Normal: {Ingress: []view.Rule{Anything}, Egress: []view.Rule{Anything}}}})
		c.Hosts.Remove("up0")
		return c
	}())
	w.Passes(w.Outside, NodeAddr+":30080", false, "all interfaces")
	w.Passes(w.A, NodeAddr+":30080", false, "workloads' too")
	w.Passes(w.A, NodeAddr+":30081", true, "no rule about it")
}

func (k Kind) testDoNotTrack(t *testing.T) {
	w := k.NewWorld(t)
	w.listenOn(w.Node, ":22", ":80", ":81", ":82")
	w.listenOn(w.Outside, ":80", ":81", ":179")
	w.listenOn(w.B, ":80")
	closed := view.Policy{Ingress: []view.Rule{}, Egress: []view.Rule{}}
	untracked := view.Policy{
		Ingress: []view.Rule{AllowTo(tcp, 80), AllowTo(tcp, 81), AllowFrom(tcp, 80), DenyTo(tcp, 22)},
		Egress:  []view.Rule{AllowFrom(tcp, 80), AllowTo(tcp, 80), DenyTo(tcp, 179)},
	}
	w.Apply(Hosting(map[string]Endpoint{"up0": {desired.Untracked: untracked, desired.Normal: closed}}))
	for _, host := range []string{NodeAddr, nodeSix} {
		w.Passes(w.Outside, host+":80", true, "allowed there and back")
		w.Passes(w.Outside, host+":81", false, "no rule for the way back")
		w.Passes(w.Outside, host+":82", false, "left to the normal policy")
		w.Passes(w.Outside, host+":22", true, "failsafe in")
	}
	for _, out := range []string{OutsideAddr, outsideSix} {
		w.Passes(w.Node, out+":80", true, "allowed there and back")
		w.Passes(w.Node, out+":179", true, "failsafe out")
	}
	w.Node.Run(t, `nft 'table ip probe { chain in { type filter hook input priority 10; tcp dport 80 ct state untracked counter; tcp dport 22 ct state untracked counter; }; }'`)
	w.Passes(w.Outside, NodeAddr+":80", true, "allowed")
	w.Passes(w.Outside, NodeAddr+":22", true, "failsafe")
	probed := w.Node.Run(t, "nft list table ip probe")
	assert.NotContains(t, probed, "tcp dport 80 ct state untracked counter packets 0 ", "not tracked")
	assert.Contains(t, probed, "tcp dport 22 ct state untracked counter packets 0 ", "a failsafe port is tracked as ever")

	deny := view.Policy{Ingress: []view.Rule{DenyTo(tcp, 80)}}
	c := Hosting(map[string]Endpoint{"up0": {desired.Untracked: deny, desired.Normal: {Ingress: []view.Rule{Anything}, Egress: []view.Rule{Anything}}}})
	w.Apply(c)
	w.Passes(w.Outside, NodeAddr+":80", false, "denied at once")
	w.Passes(w.Outside, AddrB+":80", false, "denied at once, what is forwarded too")
	w.Passes(w.Outside, NodeAddr+":81", true, "left to the normal policy")
}

func (k Kind) testApplyOnForward(t *testing.T) {
	w := k.NewWorld(t)
	w.listenOn(w.Node, ":82")
	w.listenOn(w.B, ":22", ":80", ":81")
	w.listenOn(w.A, ":81")
	w.listenOn(w.Outside, ":80", ":81")
	open := view.Policy{Ingress: []view.Rule{Anything}, Egress: []view.Rule{Anything}}
	w.Apply(Hosting(map[string]Endpoint{"up0": {desired.Forward: {Ingress: []view.Rule{AllowTo(tcp, 80)}}, desired.Normal: open}}))
	for _, pod := range []string{AddrB, "[" + SixB + "]"} {
		w.Passes(w.Outside, pod+":80", true, "allowed")
		w.Passes(w.Outside, pod+":81", false, "end of tier")
		w.Passes(w.Outside, pod+":22", false, "failsafes are not for what is forwarded")
	}
	w.Passes(w.Outside, NodeAddr+":82", true, "not forwarded")
	w.Passes(w.A, OutsideAddr+":81", true, "no policy about what leaves")
	w.Passes(w.A, AddrB+":81", true, "not by this interface")

	w.Apply(Hosting(map[string]Endpoint{"up0": {desired.Forward: {Egress: []view.Rule{AllowTo(tcp, 80)}}, desired.Normal: open}}))
	w.Passes(w.Outside, AddrB+":81", true, "no policy about what comes")
	w.Passes(w.A, OutsideAddr+":80", true, "allowed")
	w.Passes(w.A, OutsideAddr+":81", false, "end of tier")

	c := Hosting(map[string]Endpoint{
		"*":   {desired.Forward: {Ingress: []view.Rule{AllowTo(tcp, 80)}}, desired.Normal: open},
		"up0": {desired.Normal: open},
	})
	w.Apply(c)
	w.Passes(w.A, AddrB+":80", true, "allowed")
	w.Passes(w.A, AddrB+":81", false, "workloads' interfaces are under all interfaces' policy")
	w.Passes(w.Outside, AddrB+":81", true, "an endpoint of its own replaces that of all interfaces")

	// What a policy of an earlier pass accepted is not judged again on its way in.
	c = Hosting(map[string]Endpoint{"up0": {
		desired.PreDNAT: {Ingress: []view.Rule{AllowTo(tcp, 81)}}, desired.Forward: {Ingress: []view.Rule{AllowTo(tcp, 80)}}, desired.Normal: open,
	}})
	c.Hosts.Remove("*")
	w.Apply(c)
	w.Passes(w.Outside, AddrB+":81", true, "accepted before")
	w.Passes(w.Outside, AddrB+":22", false, "end of tier")
	deny := desired.FirewallDelta{}
	deny.Workloads.Put("cali2", desired.Workload{})
	w.Apply(deny)
	w.Passes(w.Outside, AddrB+":81", false, "the workload's own policy counts nevertheless")
}

// Staged policies of the passes in which no other policy is asked are counted, and change no verdict: not of what is established or of
// a failsafe port, and not what others' rules say.
func (k Kind) testStagedThroughHostEndpoints(t *testing.T) {
	w := k.NewWorld(t)
	w.listenOn(w.Node, ":22", ":80", ":81")
	w.listenOn(w.B, ":22", ":80")
	w.listenOn(w.Outside, ":80", ":179")
	beyond := labtest.New(t) // forwarded to by the node, and no workload
	w.Wire(beyond, "up1", "eth0", "02:00:00:00:00:02")
	w.Node.Run(t, "ip addr add 192.168.8.1/24 dev up1; ip link set up1 up")
	beyond.Run(t, "ip addr add 192.168.8.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.8.1")
	w.Outside.Run(t, "ip route add 192.168.8.0/24 via 192.168.9.1")
	w.listenOn(beyond, ":80", ":81")
	// Others' rule, behind ours, on what is established.
	others := "iptables-" + map[bool]string{false: "nft", true: "legacy"}[k.Name == "legacy"]
	w.Node.Run(t, others+" -A FORWARD -i up1 -p tcp --sport 81 -m conntrack --ctstate ESTABLISHED -j DROP")

	deny := []view.Rule{DenyTo(tcp, 80), DenyTo(tcp, 22), DenyTo(tcp, 179)}
	staged := view.Policy{Staged: true, Ingress: deny, Egress: deny}
	open := view.Policy{Ingress: []view.Rule{Anything}, Egress: []view.Rule{Anything}}
	c := Hosting(map[string]Endpoint{
		"up0": {desired.Untracked: staged, desired.PreDNAT: staged, desired.Forward: staged, desired.Normal: open},
		"*":   {desired.PreDNAT: {Ingress: []view.Rule{DenyTo(tcp, 81)}}, desired.Normal: open},
	})
	w.Apply(c)
	counted := func() map[string]uint64 {
		all, err := w.Driver.Counters(t.Context())
		require.NoError(t, err)
		out := map[string]uint64{}
		for _, c := range all {
			if name, ours := strings.CutPrefix(c.Comment, "sgnp/hep-up0."); ours {
				out[name] += c.Packets
			}
		}
		return out
	}
	const (
		untracked, untrackedOut = "untracked ingress 0", "untracked egress 0"
		early                   = "prednat ingress 0"
		forward, forwardOut     = "forward ingress 0", "forward egress 0"
	)
	for _, c := range []struct {
		from *labtest.Namespace
		to   string
		by   []string
	}{
		{w.Outside, NodeAddr + ":80", []string{untracked, early}},
		{w.Outside, nodeSix + ":80", []string{untracked, early}},
		{w.Outside, AddrB + ":80", []string{untracked, early, forward}},
		{w.Outside, "[" + SixB + "]:80", []string{untracked, early, forward}},
		{w.Outside, "192.168.8.2:80", []string{untracked, early, forward}},
		{w.A, OutsideAddr + ":80", []string{forwardOut}},
		{w.Node, OutsideAddr + ":80", []string{untrackedOut}},
		{w.Outside, NodeAddr + ":22", nil}, // failsafe ports
		{w.Node, OutsideAddr + ":179", nil},
		{w.Outside, AddrB + ":22", []string{"forward ingress 1"}}, // not of what is forwarded
		{w.Outside, NodeAddr + ":81", nil},
	} {
		before := counted()
		w.Passes(c.from, c.to, true, "staged")
		after := counted()
		for name := range after {
			switch {
			case slices.Contains(c.by, name):
				assert.Greater(t, after[name], before[name], "%s: %s", c.to, name)
			case name == untracked || name == untrackedOut: // which count each packet, late ones of connections of before too
			default:
				assert.Equal(t, before[name], after[name], "%s: %s", c.to, name)
			}
		}
	}
	w.Passes(w.Outside, "192.168.8.2:81", false, "others' rules on what is established hold")
	established, err := Dial(w.Outside, AddrB+":80", Patience)
	require.NoError(t, err)
	defer established.Close()
	before := counted()
	require.True(t, Alive(established, Patience))
	after := counted()
	assert.Equal(t, before[forward], after[forward], "established")
	assert.Equal(t, before[early], after[early], "established")
	assert.Greater(t, after[untracked], before[untracked], "before connection tracking every packet counts")

	// What render makes of an endpoint that only counts beside one of all interfaces in force.
	both := desired.FirewallDelta{}
	h := c.Hosts.Set["up0"]
	h.PreDNAT = c.Hosts.Set["*"].PreDNAT
	both.Hosts.Put("up0", h)
	w.Apply(both)
	before = counted()
	w.Passes(w.Outside, NodeAddr+":80", true, "counted, and no rule about it")
	assert.Greater(t, counted()[early], before[early])
	w.Passes(w.Outside, NodeAddr+":81", false, "all interfaces")
}

// What a host sends itself and has translated (to a service) is judged by what it becomes, and by the interface it really
// leaves by.
func (k Kind) testLocallySentAndTranslated(t *testing.T) {
	w := k.NewWorld(t)
	w.listenOn(w.Outside, ":80", ":81")
	w.listenOn(w.B, ":80")
	w.Node.Run(t, `
		ip link add services0 type veth peer name services1; ip link set services0 up; ip link set services1 up
		ip route add 10.96.0.0/16 dev services0; ip -6 route add fd96::/64 dev services0
		nft 'table ip services { chain out { type nat hook output priority -100;
			ip daddr 10.96.0.1 dnat to 192.168.9.2; ip daddr 10.96.0.2 dnat to 10.0.1.2; }; 
			chain post { type nat hook postrouting priority 100; oifname "up0" masquerade; oifname "cali2" masquerade; }; }'
		nft 'table ip6 services { chain out { type nat hook output priority -100; ip6 daddr fd96::1 dnat to fd09::2; };
			chain post { type nat hook postrouting priority 100; oifname "up0" masquerade; }; }'`)
	for _, reject := range []bool{false, true} {
		c := Hosting(map[string]Endpoint{
			"up0":       {desired.Normal: {Ingress: []view.Rule{}, Egress: []view.Rule{{Action: view.Allow, Protocol: tcp, Destination: view.Match{Nets: Nets(OutsideAddr+"/32", "fd09::2/128"), Ports: Port(80)}}}}},
			"services0": {desired.Normal: {Ingress: []view.Rule{}, Egress: []view.Rule{}}},
		})
		c.Settings.RejectDenied = reject
		w.Apply(c)
		w.Passes(w.Node, "10.96.0.1:80", true, "allowed to where it goes")
		w.Passes(w.Node, "10.96.0.1:81", false, "end of tier")
		w.Passes(w.Node, "[fd96::1]:80", true, "allowed to where it goes")
		w.Passes(w.Node, "[fd96::1]:81", false, "end of tier")
		w.Passes(w.Node, "10.96.0.2:80", true, "to a workload of its own")
		w.Passes(w.Node, "10.96.0.9:80", false, "not translated")
	}
}

func (k Kind) testTunnelsPassHostEndpoints(t *testing.T) {
	w := k.NewWorld(t)
	UDPEcho(t, w.Node, ":4789")
	UDPEcho(t, w.Outside, ":4790")
	c := Hosting(map[string]Endpoint{"*": {desired.Normal: {Ingress: []view.Rule{}, Egress: []view.Rule{}}}})
	c.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	w.Apply(c)
	assert.False(t, UDPAnswered(w.Outside, OutsideAddr+":4789", NodeAddr+":4789", Brief), "not a node")
	c = desired.FirewallDelta{}
	c.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet, Members: Members(OutsideAddr + "/32")})
	w.Apply(c)
	assert.True(t, UDPAnswered(w.Outside, OutsideAddr+":4789", NodeAddr+":4789", Patience), "a node, which gets an answer")
	assert.False(t, UDPAnswered(w.Node, NodeAddr+":5000", OutsideAddr+":4790", Brief), "not the tunnels' port")
}
