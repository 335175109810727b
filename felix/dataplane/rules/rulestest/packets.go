//go:build lab

package rulestest

import (
	"context"
	"fmt"
	"net"
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

// Nets parses prefixes.
func Nets(cidrs ...string) (out []netip.Prefix) {
	for _, c := range cidrs {
		out = append(out, netip.MustParsePrefix(c))
	}
	return out
}

// Members are members of a set of prefixes.
func Members(cidrs ...string) (out []view.Member) {
	for _, p := range Nets(cidrs...) {
		out = append(out, view.Member{Prefix: p})
	}
	return out
}

// Port is a list of one port.
func Port(p uint16) []view.PortRange { return []view.PortRange{{First: p, Last: p}} }

func (k Kind) testClosedUntilToldOtherwise(t *testing.T) {
	w := k.NewWorld(t)
	w.Listen(w.B, ":80")
	w.Listen(w.Node, ":81")
	w.Passes(w.A, AddrB+":80", true, "before felix there is no firewall")

	w.Apply(desired.FirewallDelta{})
	w.Passes(w.A, AddrB+":80", false, "an interface that nobody told of is closed")

	c := BothOpen()
	c.Workloads.Put("cali2", desired.Workload{Endpoint: "k8s/test/b", ClosedBecause: "profile pro/x is not known"})
	w.Apply(c)
	w.Passes(w.A, AddrB+":80", false, "closed to")
	w.Passes(w.B, AddrA+":80", false, "closed from")
	w.Passes(w.B, NodeAddr+":81", false, "closed to the host")
	assert.Equal(t, "profile pro/x is not known", w.Driver.Closed("cali2"))
	assert.Empty(t, w.Driver.Closed("cali1"))

	c = desired.FirewallDelta{}
	c.Workloads.Put("cali2", Under("open"))
	w.Apply(c)
	w.Passes(w.A, AddrB+":80", true, "open")
	w.Passes(w.A, "["+SixB+"]:80", true, "open in IPv6")
	w.Passes(w.Node, AddrB+":80", true, "the host reaches its pods")

	open, err := Dial(w.A, AddrB+":80", Patience)
	require.NoError(t, err)
	defer open.Close()
	require.True(t, Alive(open, Patience))
	c = desired.FirewallDelta{}
	c.Workloads.Put("cali2", desired.Workload{})
	w.Apply(c)
	assert.False(t, Alive(open, Brief), "closed cuts what is established")

	c = desired.FirewallDelta{}
	c.Workloads.Put("cali2", Under("nowhere"))
	w.Apply(c)
	w.Passes(w.A, AddrB+":80", false, "a list that is not there is closed")
	assert.Contains(t, w.Driver.Closed("cali2"), "cali-fw-nowhere is not programmed")

	c = Firewall(nil, []view.PolicyList{{ID: "nowhere", Profiles: []string{"pro/all"}}})
	w.Apply(c)
	w.Passes(w.A, AddrB+":80", true, "the list came")

	c = desired.FirewallDelta{}
	c.Workloads.Remove("cali2")
	w.Apply(c)
	w.Passes(w.A, AddrB+":80", false, "a workload that is gone is unknown")
}

func (k Kind) testPoliciesDecide(t *testing.T) {
	w := k.NewWorld(t)
	for _, p := range []string{":80", ":81", ":82", ":8080", ":9000"} {
		w.Listen(w.B, p)
	}
	tier := func(name string, def view.Action, ids ...string) view.TierPolicies {
		return view.TierPolicies{Name: name, DefaultAction: def, Ingress: ids}
	}
	from := func(sets ...string) view.Match { return view.Match{Sets: sets} }
	to := func(p uint16) view.Match { return view.Match{Ports: Port(p)} }
	const tcp = 6
	for _, c := range []struct {
		name     string
		tiers    []view.TierPolicies
		profiles []string
		policies []view.Policy
		pass     []string
		fail     []string
	}{
		{
			"a set of clients, one port",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			[]string{"pro/all"},
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{Action: view.Allow, Protocol: tcp, Source: from("s:a"), Destination: to(80)}}}},
			[]string{AddrB + ":80", "[" + SixB + "]:80"},
			[]string{AddrB + ":81", "[" + SixB + "]:81"},
		},
		{
			"not in the set",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			[]string{"pro/all"},
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{Action: view.Allow, Protocol: tcp, Source: from("s:other")}}}},
			nil,
			[]string{AddrB + ":80"},
		},
		{
			"negations",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{
				Action: view.Allow, Protocol: tcp, Source: view.Match{NotSets: []string{"s:other"}, NotNets: Nets("10.9.0.0/16", "10.0.1.7/32")},
				Destination: view.Match{NotPorts: []view.PortRange{{First: 80, Last: 81}, {First: 9000, Last: 9000}}},
			}}}},
			[]string{AddrB + ":82", AddrB + ":8080"},
			[]string{AddrB + ":80", AddrB + ":81", AddrB + ":9000", "[" + SixB + "]:82"},
		},
		{
			"numeric or named ports",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{
				Action: view.Allow, Protocol: tcp, Destination: view.Match{Ports: []view.PortRange{{First: 81, Last: 82}}, NamedPorts: []string{"n:http"}},
			}}}},
			[]string{AddrB + ":81", AddrB + ":82", AddrB + ":8080", "[" + SixB + "]:8080"},
			[]string{AddrB + ":80", AddrB + ":9000"},
		},
		{
			"pass leaves the tier, log decides nothing, a deny before an allow wins",
			[]view.TierPolicies{
				tier("first", view.Deny, "gnp/first.a", "gnp/first.b"),
				tier("empty", view.Deny),
				tier("staged", view.Deny, "sgnp/staged.x"),
				tier("last", view.Pass, "gnp/last.a"),
			},
			[]string{"pro/only81"},
			[]view.Policy{
				{ID: "gnp/first.a", Ingress: []view.Rule{{Action: view.Log}, {Action: view.Deny, Protocol: tcp, Destination: to(82)}, {Action: view.Pass, Protocol: tcp, Destination: to(81)}}},
				{ID: "gnp/first.b", Ingress: []view.Rule{{Action: view.Allow, Protocol: tcp, Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 82}}}}, {Action: view.Pass, Protocol: tcp, Destination: to(9000)}}},
				{ID: "gnp/last.a", Ingress: []view.Rule{{Action: view.Deny, Protocol: 17}}},
				{ID: "pro/only81", Ingress: []view.Rule{{Action: view.Allow, Protocol: tcp, Destination: to(81)}}},
			},
			[]string{AddrB + ":80", AddrB + ":81"},                    // allowed; passed and allowed by the profile
			[]string{AddrB + ":82", AddrB + ":8080", AddrB + ":9000"}, // denied; end of tier; no profile decides
		},
		{
			"one family only",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{
				{Action: view.Allow, IPVersion: 6, Protocol: tcp, Destination: to(80)},
				{Action: view.Allow, Protocol: tcp, Source: view.Match{Nets: Nets("10.0.0.0/8", "172.16.0.0/12")}, Destination: to(81)},
			}}},
			[]string{"[" + SixB + "]:80", AddrB + ":81"},
			[]string{AddrB + ":80", "[" + SixB + "]:81"},
		},
		{
			"a set that is not there closes",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{Action: view.Deny, Source: from("s:unknown")}, {Action: view.Allow}}}},
			nil,
			[]string{AddrB + ":80"},
		},
	} {
		list := view.PolicyList{ID: c.name, Tiers: c.tiers, Profiles: c.profiles}
		d := Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under(c.name)}, append(OpenLists, list), append(c.policies, AllowAll)...)
		d.Sets.Put("s:a", desired.Set{Type: view.SetNet, Members: Members("10.0.1.1/32", "10.0.1.0/30", "fd00:1::1/128")})
		d.Sets.Put("s:other", desired.Set{Type: view.SetNet, Members: Members("10.0.1.3/32", "10.8.0.0/16")})
		d.Sets.Put("n:http", desired.Set{Type: view.SetIPPort, Members: []view.Member{
			{Prefix: netip.MustParsePrefix(AddrB + "/32"), Protocol: tcp, Port: 8080},
			{Prefix: netip.MustParsePrefix(SixB + "/128"), Protocol: tcp, Port: 8080},
		}})
		w.Apply(d)
		for _, to := range c.pass {
			w.Passes(w.A, to, true, c.name)
		}
		for _, to := range c.fail {
			w.Passes(w.A, to, false, c.name)
		}
	}
	c := desired.FirewallDelta{Members: map[string]desired.SetDelta{"s:a": {Removed: Members("10.0.1.0/30", "10.0.1.1/32")}}}
	c.Workloads.Put("cali2", Under("a set of clients, one port"))
	w.Apply(c)
	w.Passes(w.A, AddrB+":80", false, "the policy of the first case was replaced meanwhile")
}

func (k Kind) testEgressPolicyAndTheHost(t *testing.T) {
	w := k.NewWorld(t)
	w.Listen(w.B, ":80")
	w.Listen(w.Node, ":80")
	w.Listen(w.Node, ":81")
	egress := view.Policy{ID: "np/s/out", Egress: []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: Port(80)}}}}
	list := view.PolicyList{ID: "out", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Egress: []string{"np/s/out"}}}, Profiles: []string{"pro/all"}}
	for _, c := range []struct {
		action desired.HostAction
		host   bool
	}{{desired.HostDrop, false}, {desired.HostAccept, true}, {desired.HostReturn, true}} {
		d := Firewall(map[string]desired.Workload{"cali1": Under("out"), "cali2": Under("open")}, append(OpenLists, list), egress, AllowAll)
		d.Settings.EndpointToHost = c.action
		w.Apply(d)
		w.Passes(w.A, AddrB+":80", true, "allowed by egress")
		w.Passes(w.A, NodeAddr+":80", c.host, fmt.Sprint("to the host with action ", c.action))
		w.Passes(w.A, NodeAddr+":81", false, "egress policy denies")
		w.Passes(w.B, "["+"fd09::1"+"]:80", c.host, "to the host in IPv6")
	}

	// Who speaks BGP with the node reaches its speaker, and nothing else of it; policy has its say before.
	speaker := func(port uint16) desired.FirewallDelta {
		a, b := Under("out"), Under("open")
		a.SpeakerPort, b.SpeakerPort = port, port
		return Firewall(map[string]desired.Workload{"cali1": a, "cali2": b}, append(OpenLists, list), egress, AllowAll)
	}
	w.Apply(speaker(80))
	w.Passes(w.A, NodeAddr+":80", true, "the speaker")
	w.Passes(w.A, NodeAddr+":81", false, "another port")
	w.Passes(w.B, "[fd09::1]:80", true, "the speaker in IPv6")
	w.Apply(speaker(81))
	w.Passes(w.A, NodeAddr+":80", false, "the speaker's former port")
	w.Passes(w.A, NodeAddr+":81", false, "egress policy denies")
	w.Passes(w.B, NodeAddr+":81", true, "the speaker's new port")
	w.Apply(speaker(0))
	w.Passes(w.B, NodeAddr+":81", false, "no speaker any more")
}

func (k Kind) testSpoofedSourcesAreDropped(t *testing.T) {
	for _, f := range []struct {
		network, a, b    string
		allowed, another string
	}{
		{"udp4", AddrA, AddrB, "10.99.0.5", "10.0.1.77"},
		{"udp6", SixA, SixB, "fd99::5", "fd00:1::77"},
	} {
		t.Run(f.network, func(t *testing.T) {
			w := k.NewWorld(t)
			seen := make(chan string, 16)
			w.B.Do(t, func() error {
				p, err := net.ListenPacket(f.network, ":53")
				if err != nil {
					return err
				}
				t.Cleanup(func() { _ = p.Close() })
				go func() {
					b := make([]byte, 16)
					for {
						_, from, err := p.ReadFrom(b)
						if err != nil {
							return
						}
						seen <- from.(*net.UDPAddr).IP.String()
					}
				}()
				return nil
			})
			w.A.Run(t, "ip addr add "+f.allowed+" dev lo nodad; ip addr add "+f.another+" dev lo nodad")
			send := func(source string, wait time.Duration) string {
				w.A.Do(t, func() error {
					c, err := net.DialUDP(f.network, &net.UDPAddr{IP: net.ParseIP(source)}, &net.UDPAddr{IP: net.ParseIP(f.b), Port: 53})
					if err != nil {
						return err
					}
					defer func() { _ = c.Close() }()
					_, err = c.Write([]byte("x"))
					return err
				})
				select {
				case from := <-seen:
					return from
				case <-time.After(wait):
					return ""
				}
			}
			as := func(change func(*desired.Workload)) {
				x := Under("open")
				change(&x)
				c := desired.FirewallDelta{}
				c.Workloads.Put("cali1", x)
				w.Apply(c)
			}
			w.Apply(BothOpen())
			assert.Equal(t, f.a, send(f.a, Patience), "its address is routed to it")
			assert.Empty(t, send(f.allowed, Brief), "not the pod's address")
			assert.Empty(t, send(f.another, Brief))
			as(func(x *desired.Workload) { x.AllowedSources = Nets("10.99.0.0/24", "fd99::/64") })
			assert.Equal(t, f.allowed, send(f.allowed, Patience), "allowed")
			assert.Empty(t, send(f.another, Brief), "still not the pod's")
			as(func(x *desired.Workload) { x.Addresses = Addrs(f.a) })
			assert.Equal(t, f.a, send(f.a, Patience), "its address is known")
			assert.Empty(t, send(f.allowed, Brief), "no longer allowed")
			assert.Empty(t, send(f.another, Brief))
		})
	}
}

func (k Kind) testOutgoingNAT(t *testing.T) {
	w := k.NewWorld(t)
	clients := w.Listen(w.Outside, ":80")
	inPool := w.Listen(w.Outside, "10.0.2.9:81")
	d := BothOpen()
	pools := desired.Set{Type: view.SetNet, Members: Members("10.0.0.0/16", "fd00::/16")}
	d.Sets.Put(desired.SetPools, pools)
	d.Sets.Put(desired.SetMasqPools, pools)
	w.Apply(d)
	source := func(to string, heard <-chan netip.Addr) string {
		w.Passes(w.A, to, true, "outgoing")
		return (<-heard).String()
	}
	assert.Equal(t, AddrA, source(OutsideAddr+":80", clients), "no NAT unless asked for")
	set := func(n *desired.NATOutgoing, vxlan bool) {
		s := &desired.Settings{WorkloadPrefixes: []string{"cali"}, NATOutgoing: n}
		if vxlan {
			s.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
		}
		w.Apply(desired.FirewallDelta{Settings: s})
	}
	set(&desired.NATOutgoing{}, false)
	assert.Equal(t, NodeAddr, source(OutsideAddr+":80", clients))
	assert.Equal(t, "fd09::1", source("[fd09::2]:80", clients))
	assert.Equal(t, AddrA, source("10.0.2.9:81", inPool), "not between pools")
	set(&desired.NATOutgoing{ExcludeHosts: true, RandomizePorts: true}, true)
	assert.Equal(t, NodeAddr, source(OutsideAddr+":80", clients))
	w.Apply(func() (c desired.FirewallDelta) {
		c.Sets.Put(desired.SetAllHosts, desired.Set{Type: view.SetNet, Members: Members(OutsideAddr + "/32")})
		return c
	}())
	assert.Equal(t, AddrA, source(OutsideAddr+":80", clients), "not to hosts")
	set(&desired.NATOutgoing{OutInterface: "other"}, false)
	assert.Equal(t, AddrA, source(OutsideAddr+":80", clients), "another interface")
	w.Node.Run(t, "ip addr add 192.168.9.77/32 dev up0")
	set(&desired.NATOutgoing{Source4: netip.MustParseAddr("192.168.9.77"), Ports: view.PortRange{First: 30000, Last: 30010}}, false)
	assert.Equal(t, "192.168.9.77", source(OutsideAddr+":80", clients))
	set(nil, false)
	assert.Equal(t, AddrA, source(OutsideAddr+":80", clients))
}

// TestMasqueradedUDPAvoidsTheVXLANPort sends from source port 4789: the answer must not be taken for a tunnel packet.
func (k Kind) testMasqueradedUDPAvoidsTheVXLANPort(t *testing.T) {
	w := k.NewWorld(t)
	w.Node.Run(t, "sysctl -qw net.netfilter.nf_conntrack_max=65536")
	d := BothOpen()
	d.Settings.NATOutgoing = &desired.NATOutgoing{}
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	d.Settings.AllowVXLANFromWorkloads = true
	pools := desired.Set{Type: view.SetNet, Members: Members("10.0.0.0/16")}
	d.Sets.Put(desired.SetPools, pools)
	d.Sets.Put(desired.SetMasqPools, pools)
	w.Apply(d)
	UDPEcho(t, w.Outside, ":53")
	assert.True(t, UDPAnswered(w.A, AddrA+":4789", OutsideAddr+":53", Patience))
}

// UDPEcho answers datagrams with themselves.
func UDPEcho(t *testing.T, in *labtest.Namespace, address string) {
	in.Do(t, func() error {
		p, err := net.ListenPacket("udp4", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = p.Close() })
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = p.WriteTo(b[:n], from)
			}
		}()
		return nil
	})
}

// UDPAnswered sends a datagram and tells whether it comes back.
func UDPAnswered(from *labtest.Namespace, source, to string, wait time.Duration) bool {
	return from.In(func() error {
		local, err := net.ResolveUDPAddr("udp4", source)
		if err != nil {
			return err
		}
		remote, err := net.ResolveUDPAddr("udp4", to)
		if err != nil {
			return err
		}
		c, err := net.DialUDP("udp4", local, remote)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(wait))
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 8))
		return err
	}) == nil
}

func (k Kind) testVXLANIsAdmittedFromKnownNodesAndNotTracked(t *testing.T) {
	w := k.NewWorld(t)
	d := BothOpen()
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	w.Apply(d)
	UDPEcho(t, w.Node, ":4789")
	UDPEcho(t, w.B, ":4789")
	assert.False(t, UDPAnswered(w.Outside, OutsideAddr+":5000", NodeAddr+":4789", Brief), "not a node")
	assert.False(t, UDPAnswered(w.A, AddrA+":5000", AddrB+":4789", Brief), "a workload's own tunnel")
	c := desired.FirewallDelta{}
	c.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet, Members: Members(OutsideAddr + "/32")})
	w.Apply(c)
	// What was sent from the other port, and waited for a neighbour's address, may come only now.
	w.Node.Run(t, `nft 'table ip probe {
		chain in { type filter hook input priority 10; udp sport != 4789 accept; udp dport 4789 ct state untracked counter; udp dport 4789 ct state != untracked counter; }
		chain out { type filter hook output priority 10; udp dport 4789 ct state != untracked counter; }
	}'`)
	assert.True(t, UDPAnswered(w.Outside, OutsideAddr+":4789", NodeAddr+":4789", Patience), "a node")
	probed := w.Node.Run(t, "nft list table ip probe")
	assert.Contains(t, probed, "untracked counter packets 1")
	assert.Equal(t, 2, strings.Count(probed, "!= untracked counter packets 0"), probed)
	s := *d.Settings
	s.AllowVXLANFromWorkloads = true
	w.Apply(desired.FirewallDelta{Settings: &s})
	assert.True(t, UDPAnswered(w.A, AddrA+":5000", AddrB+":4789", Patience))
	s.VXLAN4 = nil
	w.Apply(desired.FirewallDelta{Settings: &s})
	w.Driver.Whole()
	require.NoError(t, w.Driver.Apply(context.Background()))
	assert.NotContains(t, w.Node.Run(t, k.List), "notrack")
}
