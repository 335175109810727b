package verdict_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/typha/verdict"
)

// known is a view in memory.
type known struct {
	lists    map[string]view.PolicyList
	policies map[string]view.Policy
	sets     map[string]*packet.Members
}

func (k known) List(id string) (view.PolicyList, bool) { l, ok := k.lists[id]; return l, ok }
func (k known) Policy(id string) (view.Policy, bool)   { p, ok := k.policies[id]; return p, ok }
func (k known) Contains(id string, a netip.Addr) bool  { return k.sets[id].Contains(a) }
func (k known) ContainsPort(id string, a netip.Addr, protocol view.Protocol, port uint16) bool {
	return k.sets[id].ContainsPort(a, protocol, port)
}

func TestDecide(t *testing.T) {
	web := packet.NewMembers([]view.Member{{Prefix: netip.MustParsePrefix("10.0.0.1/32")}})
	named := packet.NewMembers([]view.Member{{Prefix: netip.MustParsePrefix("10.0.0.2/32"), Protocol: 6, Port: 8080}})
	from := view.Match{Sets: []string{"s:web"}}
	port := func(p uint16) view.Match { return view.Match{Ports: []view.PortRange{{First: p, Last: p}}} }
	v := known{
		sets: map[string]*packet.Members{"s:web": web, "n:http": named},
		policies: map[string]view.Policy{
			"np/s/web":   {ID: "np/s/web", Ingress: []view.Rule{{Action: view.Log}, {Action: view.Allow, Protocol: 6, Source: from, Destination: port(80)}}},
			"np/s/named": {ID: "np/s/named", Ingress: []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{NamedPorts: []string{"n:http"}}}}},
			"np/s/pass":  {ID: "np/s/pass", Ingress: []view.Rule{{Action: view.Pass, Protocol: 17}}},
			"snp/s/deny": {ID: "snp/s/deny", Staged: true, Ingress: []view.Rule{{Action: view.Deny}}},
			"pro/pass":   {ID: "pro/pass", Ingress: []view.Rule{{Action: view.Pass}}},
			"pro/all":    {ID: "pro/all", Ingress: []view.Rule{{Action: view.Allow}}},
		},
		lists: map[string]view.PolicyList{"l": {
			ID: "l", Profiles: []string{"pro/pass", "pro/all"}, Tiers: []view.TierPolicies{
				{Name: "staged", DefaultAction: view.Deny, Ingress: []string{"snp/s/deny"}},
				{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/s/pass", "np/s/web", "np/s/named"}},
			},
		}},
	}
	e := view.WorkloadEndpoint{PolicyList: "l"}
	at := func(from string, protocol view.Protocol, port uint16) packet.Packet {
		return packet.Packet{Source: netip.MustParseAddr(from), Destination: netip.MustParseAddr("10.0.0.2"), Protocol: protocol, DestinationPort: port}
	}
	for _, c := range []struct {
		p    packet.Packet
		want verdict.Decision
	}{
		{at("10.0.0.1", 6, 80), verdict.Decision{Allowed: true, By: "np/s/web", Rule: 1}},
		{at("10.0.0.9", 6, 80), verdict.Decision{By: "end of tier default", Rule: verdict.EndOfAll}},
		{at("10.0.0.9", 6, 8080), verdict.Decision{Allowed: true, By: "np/s/named"}},
		{at("10.0.0.9", 17, 80), verdict.Decision{Allowed: true, By: "pro/all"}},
	} {
		assert.Equal(t, c.want, verdict.Decide(v, e, false, c.p), "%+v", c.p)
	}
	assert.Equal(t, verdict.Decision{By: "no policy and no profile allows it", Rule: verdict.EndOfAll}, verdict.Decide(v, e, true, at("10.0.0.1", 6, 80)))
	e.Incomplete = []string{"profile pro/x"}
	assert.Contains(t, verdict.Decide(v, e, false, at("10.0.0.1", 6, 80)).By, "closed")
	assert.Contains(t, verdict.Decide(v, view.WorkloadEndpoint{PolicyList: "?"}, false, at("10.0.0.1", 6, 80)).By, "closed")
}
