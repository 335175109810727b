package verdict_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/typha/verdict"
)

// What random worlds meet too seldom (integration/oracle has the rest).
func TestCross(t *testing.T) {
	tcp := func(port uint16, a view.Action) view.Rule {
		return view.Rule{Action: a, Protocol: 6, Destination: view.Match{Ports: []view.PortRange{{First: port, Last: port}}}}
	}
	one := func(id string) []view.TierPolicies {
		return []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{id}}}
	}
	v := known{
		policies: map[string]view.Policy{
			"raw":   {Ingress: []view.Rule{tcp(80, view.Allow), {Action: view.Deny, Protocol: 6}, {Action: view.Deny, Protocol: 58}}},
			"early": {Ingress: []view.Rule{tcp(81, view.Allow)}},
			"fwd":   {Ingress: []view.Rule{{Action: view.Deny}}},
		},
		lists: map[string]view.PolicyList{"raw": {Tiers: one("raw")}, "early": {Tiers: one("early")}, "fwd": {Tiers: one("fwd")}, "none": {}},
	}
	own := &view.HostEndpoint{Name: "own", Untracked: "raw", Forward: "fwd", Normal: "none"}
	early := &view.HostEndpoint{Name: "early", PreDNAT: "early", Forward: "fwd", Normal: "none"}
	pod := &view.WorkloadEndpoint{ID: view.EndpointID{Orchestrator: "k8s", Workload: "a/b", Endpoint: "eth0"}, Incomplete: []string{"x"}}
	fail := []verdict.Failsafe{{Protocol: 6, Port: 22, Peers: netip.MustParsePrefix("192.0.2.0/24")}}
	four := func(sport, port uint16) packet.Packet {
		return packet.Packet{Source: netip.MustParseAddr("192.0.2.1"), Destination: netip.MustParseAddr("10.0.0.1"), Protocol: 6, SourcePort: sport, DestinationPort: port}
	}
	six := func(kind uint8) packet.Packet {
		return packet.Packet{Source: netip.MustParseAddr("fe80::1"), Destination: netip.MustParseAddr("ff02::16"), Protocol: 58, ICMP: &view.ICMP{Type: kind}}
	}
	stranger := four(1, 22)
	stranger.Source = netip.MustParseAddr("198.51.100.1")
	toHost, toPod, elsewhere := verdict.Way{ToHost: true}, verdict.Way{To: pod}, verdict.Way{}
	for _, c := range []struct {
		name string
		node verdict.Node
		way  verdict.Way
		p    packet.Packet
		want string
	}{
		{"answers of a failsafe port are not stopped where nothing is tracked", verdict.Node{Own: own, FailsafeOut: fail}, toHost, four(22, 9), "own normal false"},
		{"others are", verdict.Node{Own: own, FailsafeOut: fail}, toHost, four(23, 9), "own untracked false, own normal false"},
		{"a failsafe port is for some peers", verdict.Node{Own: own, FailsafeIn: fail}, toHost, four(1, 22), "own normal true"},
		{"and not for all", verdict.Node{Own: own, FailsafeIn: fail}, toHost, stranger, "own untracked false, own normal false"},
		{"multicast listeners are heard", verdict.Node{Own: own}, toHost, six(143), "own normal true"},
		{"echo is not", verdict.Node{Own: own}, toHost, six(128), "own untracked false, own normal false"},
		{"what an early pass accepted is not judged again as it comes in", verdict.Node{Own: own}, elsewhere, four(1, 80), "own untracked true"},
		{"so with preDNAT of all interfaces", verdict.Node{Any: early}, elsewhere, four(1, 81), "early preDNAT true"},
		{"but it is by a pod", verdict.Node{Own: own}, toPod, four(1, 80), "own untracked true, k8s/a/b/eth0  false"},
		{"what it left open is", verdict.Node{Any: early}, elsewhere, four(1, 82), "early forward false"},
	} {
		var got []string
		for _, s := range verdict.Cross(v, c.node, c.way, c.p) {
			got = append(got, fmt.Sprint(strings.TrimPrefix(s.Endpoint, verdict.HostPrefix), " ", s.Pass, " ", s.Allowed))
		}
		assert.Equal(t, c.want, strings.Join(got, ", "), c.name)
	}
}
