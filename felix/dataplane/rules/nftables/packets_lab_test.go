//go:build lab

package nftables_test

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

func nets(cidrs ...string) (out []netip.Prefix) {
	for _, c := range cidrs {
		out = append(out, netip.MustParsePrefix(c))
	}
	return out
}

func members(cidrs ...string) (out []view.Member) {
	for _, p := range nets(cidrs...) {
		out = append(out, view.Member{Prefix: p})
	}
	return out
}

func port(p uint16) []view.PortRange { return []view.PortRange{{First: p, Last: p}} }

func TestClosedUntilToldOtherwise(t *testing.T) {
	w := newWorld(t)
	w.listen(w.b, ":80")
	w.listen(w.node, ":81")
	w.passes(w.a, addrB+":80", true, "before felix there is no firewall")

	w.apply(desired.FirewallDelta{})
	w.passes(w.a, addrB+":80", false, "an interface that nobody told of is closed")

	c := bothOpen()
	c.Workloads.Put("cali2", desired.Workload{Endpoint: "k8s/test/b", ClosedBecause: "profile pro/x is not known"})
	w.apply(c)
	w.passes(w.a, addrB+":80", false, "closed to")
	w.passes(w.b, addrA+":80", false, "closed from")
	w.passes(w.b, nodeAddr+":81", false, "closed to the host")
	assert.Equal(t, "profile pro/x is not known", w.driver.Closed("cali2"))
	assert.Empty(t, w.driver.Closed("cali1"))

	c = desired.FirewallDelta{}
	c.Workloads.Put("cali2", under("open"))
	w.apply(c)
	w.passes(w.a, addrB+":80", true, "open")
	w.passes(w.a, "["+sixB+"]:80", true, "open in IPv6")
	w.passes(w.node, addrB+":80", true, "the host reaches its pods")

	open, err := dial(w.a, addrB+":80", patience)
	require.NoError(t, err)
	defer open.Close()
	require.True(t, alive(open, patience))
	c = desired.FirewallDelta{}
	c.Workloads.Put("cali2", desired.Workload{})
	w.apply(c)
	assert.False(t, alive(open, brief), "closed cuts what is established")

	c = desired.FirewallDelta{}
	c.Workloads.Put("cali2", under("nowhere"))
	w.apply(c)
	w.passes(w.a, addrB+":80", false, "a list that is not there is closed")
	assert.Contains(t, w.driver.Closed("cali2"), "cali-fw-nowhere is not programmed")

	c = firewall(nil, []view.PolicyList{{ID: "nowhere", Profiles: []string{"pro/all"}}})
	w.apply(c)
	w.passes(w.a, addrB+":80", true, "the list came")

	c = desired.FirewallDelta{}
	c.Workloads.Remove("cali2")
	w.apply(c)
	w.passes(w.a, addrB+":80", false, "a workload that is gone is unknown")
}

func TestPoliciesDecide(t *testing.T) {
	w := newWorld(t)
	for _, p := range []string{":80", ":81", ":82", ":8080", ":9000"} {
		w.listen(w.b, p)
	}
	tier := func(name string, def view.Action, ids ...string) view.TierPolicies {
		return view.TierPolicies{Name: name, DefaultAction: def, Ingress: ids}
	}
	from := func(sets ...string) view.Match { return view.Match{Sets: sets} }
	to := func(p uint16) view.Match { return view.Match{Ports: port(p)} }
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
			[]string{addrB + ":80", "[" + sixB + "]:80"},
			[]string{addrB + ":81", "[" + sixB + "]:81"},
		},
		{
			"not in the set",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			[]string{"pro/all"},
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{Action: view.Allow, Protocol: tcp, Source: from("s:other")}}}},
			nil,
			[]string{addrB + ":80"},
		},
		{
			"negations",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{
				Action: view.Allow, Protocol: tcp, Source: view.Match{NotSets: []string{"s:other"}, NotNets: nets("10.9.0.0/16", "10.0.1.7/32")},
				Destination: view.Match{NotPorts: []view.PortRange{{First: 80, Last: 81}, {First: 9000, Last: 9000}}},
			}}}},
			[]string{addrB + ":82", addrB + ":8080"},
			[]string{addrB + ":80", addrB + ":81", addrB + ":9000", "[" + sixB + "]:82"},
		},
		{
			"numeric or named ports",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{
				Action: view.Allow, Protocol: tcp, Destination: view.Match{Ports: []view.PortRange{{First: 81, Last: 82}}, NamedPorts: []string{"n:http"}},
			}}}},
			[]string{addrB + ":81", addrB + ":82", addrB + ":8080", "[" + sixB + "]:8080"},
			[]string{addrB + ":80", addrB + ":9000"},
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
			[]string{addrB + ":80", addrB + ":81"},                    // allowed; passed and allowed by the profile
			[]string{addrB + ":82", addrB + ":8080", addrB + ":9000"}, // denied; end of tier; no profile decides
		},
		{
			"one family only",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{
				{Action: view.Allow, IPVersion: 6, Protocol: tcp, Destination: to(80)},
				{Action: view.Allow, Protocol: tcp, Source: view.Match{Nets: nets("10.0.0.0/8", "172.16.0.0/12")}, Destination: to(81)},
			}}},
			[]string{"[" + sixB + "]:80", addrB + ":81"},
			[]string{addrB + ":80", "[" + sixB + "]:81"},
		},
		{
			"a set that is not there closes",
			[]view.TierPolicies{tier("default", view.Deny, "np/s/web")},
			nil,
			[]view.Policy{{ID: "np/s/web", Ingress: []view.Rule{{Action: view.Deny, Source: from("s:unknown")}, {Action: view.Allow}}}},
			nil,
			[]string{addrB + ":80"},
		},
	} {
		list := view.PolicyList{ID: c.name, Tiers: c.tiers, Profiles: c.profiles}
		d := firewall(map[string]desired.Workload{"cali1": under("open"), "cali2": under(c.name)}, append(openLists, list), append(c.policies, allowAll)...)
		d.Sets.Put("s:a", desired.Set{Type: view.SetNet, Members: members("10.0.1.1/32", "10.0.1.0/30", "fd00:1::1/128")})
		d.Sets.Put("s:other", desired.Set{Type: view.SetNet, Members: members("10.0.1.3/32", "10.8.0.0/16")})
		d.Sets.Put("n:http", desired.Set{Type: view.SetIPPort, Members: []view.Member{
			{Prefix: netip.MustParsePrefix(addrB + "/32"), Protocol: tcp, Port: 8080},
			{Prefix: netip.MustParsePrefix(sixB + "/128"), Protocol: tcp, Port: 8080},
		}})
		w.apply(d)
		for _, to := range c.pass {
			w.passes(w.a, to, true, c.name)
		}
		for _, to := range c.fail {
			w.passes(w.a, to, false, c.name)
		}
	}
	c := desired.FirewallDelta{Members: map[string]desired.SetDelta{"s:a": {Removed: members("10.0.1.0/30", "10.0.1.1/32")}}}
	c.Workloads.Put("cali2", under("a set of clients, one port"))
	w.apply(c)
	w.passes(w.a, addrB+":80", false, "the policy of the first case was replaced meanwhile")
}

func TestEgressPolicyAndTheHost(t *testing.T) {
	w := newWorld(t)
	w.listen(w.b, ":80")
	w.listen(w.node, ":80")
	w.listen(w.node, ":81")
	egress := view.Policy{ID: "np/s/out", Egress: []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: port(80)}}}}
	list := view.PolicyList{ID: "out", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Egress: []string{"np/s/out"}}}, Profiles: []string{"pro/all"}}
	for _, c := range []struct {
		action desired.HostAction
		host   bool
	}{{desired.HostDrop, false}, {desired.HostAccept, true}, {desired.HostReturn, true}} {
		d := firewall(map[string]desired.Workload{"cali1": under("out"), "cali2": under("open")}, append(openLists, list), egress, allowAll)
		d.Settings.EndpointToHost = c.action
		w.apply(d)
		w.passes(w.a, addrB+":80", true, "allowed by egress")
		w.passes(w.a, nodeAddr+":80", c.host, fmt.Sprint("to the host with action ", c.action))
		w.passes(w.a, nodeAddr+":81", false, "egress policy denies")
		w.passes(w.b, "["+"fd09::1"+"]:80", c.host, "to the host in IPv6")
	}
}

func TestSpoofedSourcesAreDropped(t *testing.T) {
	for _, f := range []struct {
		network, a, b    string
		allowed, another string
	}{
		{"udp4", addrA, addrB, "10.99.0.5", "10.0.1.77"},
		{"udp6", sixA, sixB, "fd99::5", "fd00:1::77"},
	} {
		t.Run(f.network, func(t *testing.T) {
			w := newWorld(t)
			seen := make(chan string, 16)
			w.b.Do(t, func() error {
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
			w.a.Run(t, "ip addr add "+f.allowed+" dev lo nodad; ip addr add "+f.another+" dev lo nodad")
			send := func(source string, wait time.Duration) string {
				w.a.Do(t, func() error {
					c, err := net.DialUDP(f.network, &net.UDPAddr{IP: net.ParseIP(source)}, &net.UDPAddr{IP: net.ParseIP(f.b), Port: 53})
					if err != nil {
						return err
					}
					defer c.Close()
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
				x := under("open")
				change(&x)
				c := desired.FirewallDelta{}
				c.Workloads.Put("cali1", x)
				w.apply(c)
			}
			w.apply(bothOpen())
			assert.Equal(t, f.a, send(f.a, patience), "its address is routed to it")
			assert.Empty(t, send(f.allowed, brief), "not the pod's address")
			assert.Empty(t, send(f.another, brief))
			as(func(x *desired.Workload) { x.AllowedSources = nets("10.99.0.0/24", "fd99::/64") })
			assert.Equal(t, f.allowed, send(f.allowed, patience), "allowed")
			assert.Empty(t, send(f.another, brief), "still not the pod's")
			as(func(x *desired.Workload) { x.Addresses = addrs(f.a) })
			assert.Equal(t, f.a, send(f.a, patience), "its address is known")
			assert.Empty(t, send(f.allowed, brief), "no longer allowed")
			assert.Empty(t, send(f.another, brief))
			if f.network == "udp6" { // the routes are not asked
				as(func(x *desired.Workload) { x.Addresses = addrs(f.a, f.another) })
				assert.Equal(t, f.another, send(f.another, patience))
				as(func(x *desired.Workload) { x.Addresses = addrs(f.a) })
				assert.Empty(t, send(f.another, brief))
			}
		})
	}
}

func TestOutgoingNAT(t *testing.T) {
	w := newWorld(t)
	clients := w.listen(w.outside, ":80")
	inPool := w.listen(w.outside, "10.0.2.9:81")
	d := bothOpen()
	pools := desired.Set{Type: view.SetNet, Members: members("10.0.0.0/16", "fd00::/16")}
	d.Sets.Put(desired.SetPools, pools)
	d.Sets.Put(desired.SetMasqPools, pools)
	w.apply(d)
	source := func(to string, heard <-chan netip.Addr) string {
		w.passes(w.a, to, true, "outgoing")
		return (<-heard).String()
	}
	assert.Equal(t, addrA, source(outsideAddr+":80", clients), "no NAT unless asked for")
	set := func(n *desired.NATOutgoing, vxlan bool) {
		s := &desired.Settings{WorkloadPrefixes: []string{"cali"}, NATOutgoing: n}
		if vxlan {
			s.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
		}
		w.apply(desired.FirewallDelta{Settings: s})
	}
	set(&desired.NATOutgoing{}, false)
	assert.Equal(t, nodeAddr, source(outsideAddr+":80", clients))
	assert.Equal(t, "fd09::1", source("[fd09::2]:80", clients))
	assert.Equal(t, addrA, source("10.0.2.9:81", inPool), "not between pools")
	set(&desired.NATOutgoing{ExcludeHosts: true, RandomizePorts: true}, true)
	assert.Equal(t, nodeAddr, source(outsideAddr+":80", clients))
	w.apply(func() (c desired.FirewallDelta) {
		c.Sets.Put(desired.SetAllHosts, desired.Set{Type: view.SetNet, Members: members(outsideAddr + "/32")})
		return c
	}())
	assert.Equal(t, addrA, source(outsideAddr+":80", clients), "not to hosts")
	set(&desired.NATOutgoing{OutInterface: "other"}, false)
	assert.Equal(t, addrA, source(outsideAddr+":80", clients), "another interface")
	w.node.Run(t, "ip addr add 192.168.9.77/32 dev up0")
	set(&desired.NATOutgoing{Source4: netip.MustParseAddr("192.168.9.77"), Ports: view.PortRange{First: 30000, Last: 30010}}, false)
	assert.Equal(t, "192.168.9.77", source(outsideAddr+":80", clients))
	set(nil, false)
	assert.Equal(t, addrA, source(outsideAddr+":80", clients))
}

// TestMasqueradedUDPAvoidsTheVXLANPort sends from source port 4789: the answer must not be taken for a tunnel packet.
func TestMasqueradedUDPAvoidsTheVXLANPort(t *testing.T) {
	w := newWorld(t)
	w.node.Run(t, "sysctl -qw net.netfilter.nf_conntrack_max=65536")
	d := bothOpen()
	d.Settings.NATOutgoing = &desired.NATOutgoing{}
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	d.Settings.AllowVXLANFromWorkloads = true
	pools := desired.Set{Type: view.SetNet, Members: members("10.0.0.0/16")}
	d.Sets.Put(desired.SetPools, pools)
	d.Sets.Put(desired.SetMasqPools, pools)
	w.apply(d)
	udpEcho(t, w.outside, ":53")
	assert.True(t, udpAnswered(w.a, addrA+":4789", outsideAddr+":53", patience))
}

func udpEcho(t *testing.T, in *labtest.Namespace, address string) {
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

// udpAnswered sends a datagram and tells whether it comes back.
func udpAnswered(from *labtest.Namespace, source, to string, wait time.Duration) bool {
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
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(wait))
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 8))
		return err
	}) == nil
}

func TestVXLANIsAdmittedFromKnownNodesAndNotTracked(t *testing.T) {
	w := newWorld(t)
	d := bothOpen()
	d.Settings.VXLAN4 = &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}
	w.apply(d)
	udpEcho(t, w.node, ":4789")
	udpEcho(t, w.b, ":4789")
	assert.False(t, udpAnswered(w.outside, outsideAddr+":5000", nodeAddr+":4789", brief), "not a node")
	assert.False(t, udpAnswered(w.a, addrA+":5000", addrB+":4789", brief), "a workload's own tunnel")
	c := desired.FirewallDelta{}
	c.Sets.Put(desired.SetVXLANHosts, desired.Set{Type: view.SetNet, Members: members(outsideAddr + "/32")})
	w.apply(c)
	w.node.Run(t, `nft 'table ip probe {
		chain in { type filter hook input priority 10; udp dport 4789 ct state untracked counter; udp dport 4789 ct state != untracked counter; }
		chain out { type filter hook output priority 10; udp dport 4789 ct state != untracked counter; }
	}'`)
	assert.True(t, udpAnswered(w.outside, outsideAddr+":4789", nodeAddr+":4789", patience), "a node")
	probed := w.node.Run(t, "nft list table ip probe")
	assert.Contains(t, probed, "untracked counter packets 1")
	assert.Equal(t, 2, strings.Count(probed, "!= untracked counter packets 0"), probed)
	s := *d.Settings
	s.AllowVXLANFromWorkloads = true
	w.apply(desired.FirewallDelta{Settings: &s})
	assert.True(t, udpAnswered(w.a, addrA+":5000", addrB+":4789", patience))
	s.VXLAN4 = nil
	w.apply(desired.FirewallDelta{Settings: &s})
	w.driver.Whole()
	require.NoError(t, w.driver.Apply(context.Background()))
	assert.NotContains(t, w.node.Run(t, "nft list ruleset"), "notrack")
}
