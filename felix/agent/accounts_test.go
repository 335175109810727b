package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
)

// shop is a node with one pod under one policy.
func shop() *state.State {
	s := state.New("worker-1")
	id := view.EndpointID{Orchestrator: "k8s", Workload: "shop/web", Endpoint: "eth0"}
	p := netip.MustParsePrefix
	s.Apply(view.Batch{InSync: true, Updates: []view.Item{
		view.IPSet{ID: "s:clients", Type: view.SetNet},
		view.Policy{ID: "np/shop/web", Tier: "default", Ingress: []view.Rule{
			{Action: view.Allow, Source: view.Match{Sets: []string{"s:clients"}}}, {Action: view.Deny},
		}},
		view.Policy{ID: "pro/all", Egress: []view.Rule{{Action: view.Allow}}},
		view.PolicyList{ID: "l1", Profiles: []string{"pro/all"}, Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/shop/web"}}}},
		view.WorkloadEndpoint{ID: id, PolicyList: "l1"},
		view.Route{Dst: p("10.1.0.0/26"), Type: view.RouteBlock, Node: "worker-1", Pool: "blue"},
		view.Route{Dst: p("10.1.1.0/26"), Type: view.RouteBlock, Node: "worker-2", Pool: "blue"},
	}})
	s.SetLocal(state.Endpoint{ID: id, ContainerID: "c1", Interface: "cali1", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.7")}})
	s.SetPath(state.Path{Prefix: p("10.2.0.0/16"), Ways: &state.Ways{NextHops: []netip.Addr{netip.MustParseAddr("192.168.0.9")}}})
	return s
}

func TestExplanations(t *testing.T) {
	s := shop()
	s.HostEPs["eth"] = view.HostEndpoint{Name: "eth", Normal: "l1"}
	for key, want := range map[string][]string{
		"rule ip filter-cali-pi-np/shop/web": {"policy np/shop/web of tier default has 2 rules for ingress", "it applies to k8s/shop/web/eth0 (cali1)", "it applies to host endpoint eth"},
		"rule np/shop/web":                   {"policy np/shop/web of tier default has 2 rules for ingress", "it applies to k8s/shop/web/eth0 (cali1)", "it applies to host endpoint eth", "policy np/shop/web of tier default has 0 rules for egress"},
		"rule ip6 filter-cali-tw-l1":         {"it evaluates pro/all, np/shop/web", "it applies to k8s/shop/web/eth0 (cali1)", "it applies to host endpoint eth"},
		"set ip cali40s-clients":             {"policy np/shop/web of tier default names it in rule 0 for ingress"},
		"set ip cali40network-ip-pools":      {"all IP pools: there is no outgoing NAT towards them"},
		"route 10.1.0.7":                     {"k8s/shop/web/eth0 has the address, behind cali1", "it is a block of this node's, of pool blue; what has no workload in it is dropped"},
		"route 10.1.1.9":                     {"typha's table has it on node worker-2, of pool blue"},
		"route 10.2.3.4":                     {"bird learned it, by [192.168.0.9]"},
		"link cali1":                         {"the CNI plugin added k8s/shop/web/eth0 for container c1"},
		"link cali2":                         nil,
		"route nonsense":                     nil,
		"set s:nothing":                      nil,
	} {
		section, name, _ := strings.Cut(key, " ")
		var got []string
		for _, r := range map[string]func(*state.State, string) []server.Reason{
			"rule": explainRule, "set": explainSet, "route": explainRoute, "link": explainLink,
		}[section](s, name) {
			got = append(got, r.Because)
		}
		assert.Equal(t, want, got, key)
	}
}

func TestAccounts(t *testing.T) {
	rows := accounts(shop(), []dataplane.Counter{
		{Chain: desired.PolicyChain("np/shop/web", desired.Ingress), Comment: "np/shop/web ingress 0", Packets: 1, Bytes: 60},
		{Chain: desired.PolicyChain("np/shop/web", desired.Ingress), Comment: "np/shop/web ingress 1", Packets: 2, Bytes: 120},
		{Chain: desired.ListChain("l1", desired.Ingress), Comment: "end of tier default", Packets: 3, Bytes: 180},
		{Chain: desired.ListChain("l2", desired.Ingress), Comment: "end of tier default", Packets: 4, Bytes: 240},
		{Chain: desired.ListChain("l1", desired.Egress), Comment: "no profile decided", Packets: 5, Bytes: 300},
		{Chain: "cali-pi-np/shop/gone", Comment: "np/shop/gone ingress 0", Packets: 9, Bytes: 9},
		{Chain: "cali-failsafe-in", Comment: "failsafe", Packets: 9, Bytes: 9},
	})
	assert.Equal(t, []account{
		{tier: "default", policy: "np/shop/web", direction: "ingress", action: "allow", rule: 0, packets: 1, bytes: 60},
		{tier: "default", policy: "np/shop/web", direction: "ingress", action: "deny", rule: 1, packets: 2, bytes: 120},
		{tier: "default", direction: "ingress", action: "deny", rule: -1, packets: 7, bytes: 420},
		{direction: "egress", action: "deny", rule: -1, packets: 5, bytes: 300},
	}, rows)
	metrics := make(chan prometheus.Metric, 64)
	collect(rows, metrics)
	require.Len(t, metrics, 2*4+2*3, "packets and bytes of each rule, and of each that denies")
}

// counting is a driver of IP-in-IP that has counted.
type counting struct {
	Encapsulator
	packets map[string]uint64
	err     error
}

func (c counting) Counters() (map[string]uint64, error) { return c.packets, c.err }

// Describe and Collect make a collector of it.
func (c counting) Describe(out chan<- *prometheus.Desc) { out <- ipipPackets }
func (c counting) Collect(out chan<- prometheus.Metric) { (&Drivers{ipip: c}).collectIPIP(out) }

// Each reason is a series; a device that does not count, as the kernel's own, has none.
func TestPacketsInIPIP(t *testing.T) {
	require.Zero(t, testutil.CollectAndCount(counting{}))
	require.NoError(t, testutil.CollectAndCompare(counting{packets: map[string]uint64{"sent": 7, "fragment": 1}}, strings.NewReader(`
# HELP felix_ipip_packets_total Packets of IP-in-IP by BPF: sent to other nodes, taken from them, or the reason why one was neither.
# TYPE felix_ipip_packets_total counter
felix_ipip_packets_total{reason="fragment"} 1
felix_ipip_packets_total{reason="sent"} 7
`)))
	require.ErrorContains(t, testutil.CollectAndCompare(counting{err: errors.New("no such map")}, strings.NewReader("")), "no such map")
}

// The passes of host endpoints, where they judge, and what is lent from the endpoint of all interfaces.
func TestHostEndpointsAreExplained(t *testing.T) {
	s := state.New("worker-1")
	policy := func(id string) view.Policy { return view.Policy{ID: id, Ingress: []view.Rule{{Action: view.Allow}}} }
	list := func(id string, policies ...string) view.PolicyList {
		return view.PolicyList{ID: id, Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: policies}}}
	}
	address := netip.MustParsePrefix("10.30.0.206/24")
	s.SetHost(state.Host{Interfaces: map[string]state.Interface{"eth0": {Addresses: []netip.Prefix{address}}, "eth1": {}}})
	s.Apply(view.Batch{InSync: true, Updates: []view.Item{
		policy("gnp/a"), policy("gnp/early"), policy("gnp/raw"), list("la", "gnp/a"), list("le", "gnp/early"), list("lr", "gnp/raw"), list("lf", "gnp/a"),
		view.HostEndpoint{Name: "all", Interface: "*", Normal: "la", PreDNAT: "le", Untracked: "lr"},
		view.HostEndpoint{Name: "edge", Interface: "eth0", Normal: "la", Forward: "lf", Untracked: "lr"},
		policy("sgnp/try"), list("ls", "sgnp/try"),
		view.HostEndpoint{Name: "edge-2", Interface: "eth1", Normal: "la", PreDNAT: "ls"},
		view.HostEndpoint{Name: "late", ExpectedIPs: []netip.Addr{netip.MustParseAddr("10.9.9.9")}, Normal: "unknown"},
	}})
	got := hostEndpoints(s)
	require.Len(t, got, 4)
	shown := func(h server.Host) string {
		out := h.Name + " at " + strings.Join(h.Interfaces, ",")
		for p, a := range h.Passes {
			out += " " + desired.HostPass(p).String() + "=" + a.List.ID
			for _, id := range policiesIn(a.List) {
				assert.Contains(t, a.Policies, id)
			}
		}
		return out
	}
	assert.Equal(t, "all at * untracked= prednat=le forward= normal=la", shown(got[0]))
	assert.Equal(t, "edge at eth0 untracked=lr prednat=le forward=lf normal=la", shown(got[1]))
	assert.Equal(t, []netip.Addr{address.Addr()}, got[1].Addresses)
	assert.Empty(t, got[1].Closed)
	assert.Contains(t, got[1].FailsafeIn, desired.Failsafe{Protocol: 6, Port: 22})
	assert.Equal(t, "edge-2 at eth1 untracked= prednat=ls forward= normal=la", shown(got[2]))
	assert.Equal(t, []string{"sgnp/try", "gnp/early"}, policiesIn(got[2].Passes[desired.PreDNAT].List), "what only counts replaces nothing")
	assert.Equal(t, "late at  untracked= prednat=le forward= normal=", shown(got[3]))
	assert.Equal(t, []string{"policy list unknown is not known"}, got[3].Closed)

	s.Apply(view.Batch{InSync: true, Updates: []view.Item{list("le", "sgnp/try"), list("ls", "gnp/early")}})
	got = hostEndpoints(s)
	assert.Equal(t, "edge at eth0 untracked=lr prednat=le forward=lf normal=la", shown(got[1]), "of all interfaces, and counted here too")
	assert.Equal(t, []string{"gnp/early"}, policiesIn(got[2].Passes[desired.PreDNAT].List), "policy in force replaces what counts")
}
