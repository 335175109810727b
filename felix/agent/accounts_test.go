package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
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
