package oracle_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/felix/judge"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/generate"
	"github.com/muslin-net/muslin/integration/oracle/node"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/typha/verdict"
)

// TestJudgesSayWhatPolicyMeans has those who judge packets without a kernel agree with the oracle: felix's judge, by whose word
// connections are cut, and typha's verdict, which answers calicoctl policy eval. Neither knows host endpoints.
func TestJudgesSayWhatPolicyMeans(t *testing.T) {
	forbidden, done := 0, 0
	for seed := uint64(20_000); done < thorough.Rounds(5_000, 60_000); seed++ {
		g := generate.New(seed)
		c, err := oracle.New(g.World())
		require.NoError(t, err)
		settings := g.Settings()
		felix := judge.New()
		felix.Host = map[netip.Addr]struct{}{}
		for _, a := range []string{"192.168.9.1", "fd00:9::1"} {
			felix.Host[netip.MustParseAddr(a)] = struct{}{}
		}
		felix.Update(node.Firewall(g.World(), settings, generate.Node))
		typha := newControlPlane(node.Items(g.World(), generate.Node))
		settings.Node = "" // no node's host endpoints take part
		for range packetsOfAWorld {
			w, p := g.Packet()
			if p.Protocol == oracle.ICMPv6 && p.Type >= 130 && p.Type <= 136 {
				continue // passes whatever policy says, and is no connection
			}
			seen := packetOf(p)
			want, got := c.Passes(w, p, settings), felix.Judge(seen)
			require.Equal(t, want.Allowed, got.Outcome != judge.Forbidden,
				"felix's judge: seed %d, way %+v, packet %+v\noracle: %+v\njudge:  %+v", seed, w, p, want, got)
			for _, end := range []struct {
				endpoint  api.Key
				address   netip.Addr
				direction oracle.Direction
			}{{w.From, p.Source, oracle.Egress}, {w.To, p.Destination, oracle.Ingress}} {
				if end.endpoint == (api.Key{}) {
					continue
				}
				want := c.Decide(end.endpoint, end.direction, p)
				got := verdict.Decide(typha, typha.endpoints[end.address], end.direction == oracle.Egress, seen)
				require.Equal(t, want.Allowed, got.Allowed,
					"typha's verdict: seed %d, %s of %s, packet %+v\noracle:  %+v\nverdict: %+v", seed, end.direction, end.endpoint, p, want, got)
			}
			if done++; got.Outcome == judge.Forbidden {
				forbidden++
			}
		}
	}
	t.Logf("%d packets judged, %d of them forbidden", done, forbidden)
	require.Greater(t, forbidden, done/10)
	require.Less(t, forbidden, done*9/10)
}

func packetOf(p oracle.Packet) packet.Packet {
	out := packet.Packet{
		Source: p.Source, Destination: p.Destination, Protocol: view.Protocol(p.Protocol), SourcePort: p.SourcePort, DestinationPort: p.DestinationPort,
	}
	if p.Protocol == oracle.ICMP || p.Protocol == oracle.ICMPv6 {
		out.ICMP = &view.ICMP{Type: p.Type, Code: &p.Code}
	}
	return out
}

// controlPlane is what typha knows of a node.
type controlPlane struct {
	lists     map[string]view.PolicyList
	policies  map[string]view.Policy
	sets      map[string]*packet.Members
	endpoints map[netip.Addr]view.WorkloadEndpoint
}

func newControlPlane(items []view.Item) *controlPlane {
	c := &controlPlane{
		lists: map[string]view.PolicyList{}, policies: map[string]view.Policy{}, sets: map[string]*packet.Members{},
		endpoints: map[netip.Addr]view.WorkloadEndpoint{},
	}
	for _, i := range items {
		switch i := i.(type) {
		case view.PolicyList:
			c.lists[i.ID] = i
		case view.Policy:
			c.policies[i.ID] = i
		case view.IPSet:
			c.sets[i.ID] = packet.NewMembers(slices.Clone(i.Members))
		case view.WorkloadEndpoint:
			for _, a := range i.Addresses {
				c.endpoints[a] = i
			}
		}
	}
	return c
}

func (c *controlPlane) List(id string) (view.PolicyList, bool) { l, ok := c.lists[id]; return l, ok }

func (c *controlPlane) Policy(id string) (view.Policy, bool) { p, ok := c.policies[id]; return p, ok }

func (c *controlPlane) Contains(id string, a netip.Addr) bool {
	s := c.sets[id]
	return s != nil && s.Contains(a)
}

func (c *controlPlane) ContainsPort(id string, a netip.Addr, protocol view.Protocol, port uint16) bool {
	s := c.sets[id]
	return s != nil && s.ContainsPort(a, protocol, port)
}
