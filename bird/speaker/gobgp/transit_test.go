package gobgp_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// line is three speakers in a row: a - b - c.
type line struct {
	t                *testing.T
	a, b, c          *speaker.Speaker
	addrA, addrB     netip.Addr
	addrC            netip.Addr
	configB          policy.Config
	sinceAB, sinceBC string
}

func newLine(t *testing.T, speakers []*speaker.Speaker, third byte, asC uint32, change func(*policy.Config)) *line {
	l := &line{
		t: t, a: speakers[0], b: speakers[1], c: speakers[2],
		addrA: loopback(third, 1), addrB: loopback(third, 2), addrC: loopback(third, 3),
	}
	announce(l.a, "192.168.1.0/26", "192.168.2.0/26")
	announce(l.b)
	announce(l.c, "192.168.30.0/26", "172.20.0.0/16")
	l.configB = config(l.addrB, 64512, peer(l.addrB, l.addrA, 64512, false), peer(l.addrB, l.addrC, asC, false))
	change(&l.configB)
	configC := config(l.addrC, asC, peer(l.addrC, l.addrB, 64512, true))
	configC.Export.Pools = append(configC.Export.Pools, policy.Pool{Prefix: netip.MustParsePrefix("172.20.0.0/16")})
	apply(t, l.a, config(l.addrA, 64512, peer(l.addrA, l.addrB, 64512, true)))
	apply(t, l.c, configC)
	apply(t, l.b, l.configB)
	eventually(t, "sessions are up", func() bool {
		st := l.b.States()
		return st[l.addrA] == speaker.Established && st[l.addrC] == speaker.Established &&
			l.a.States()[l.addrB] == speaker.Established && l.c.States()[l.addrB] == speaker.Established
	})
	l.sinceAB, l.sinceBC = state(t, l.a).Since.String(), state(t, l.c).Since.String()
	return l
}

// change applies a new configuration to b; both sessions must stay up.
func (l *line) change(what func(*policy.Config)) speaker.Changes {
	l.t.Helper()
	next := l.configB
	next.Generation++
	what(&next)
	changes, err := l.b.Apply(next)
	require.NoError(l.t, err)
	l.configB = next
	return changes
}

func (l *line) stillUp() {
	l.t.Helper()
	require.Equal(l.t, l.sinceAB, state(l.t, l.a).Since.String())
	require.Equal(l.t, l.sinceBC, state(l.t, l.c).Since.String())
	for _, other := range []netip.Addr{l.addrA, l.addrC} {
		eventually(l.t, "what the speaker counts is what the engine has advertised", func() bool {
			list, err := l.b.Peers(other.String())
			return err == nil && len(list) == 1 && int(list[0].Advertised) == len(l.show(l.b, speaker.LookAdvertised, other))
		})
	}
}

func (l *line) show(s *speaker.Speaker, look speaker.Look, p netip.Addr) map[string]string {
	l.t.Helper()
	out := map[string]string{}
	require.NoError(l.t, s.Show(context.Background(), look, p.String(), netip.Prefix{}, func(j speaker.Judged) {
		out[j.Prefix.String()] = j.Verdict.By
	}))
	return out
}

// testTransit has b pass a's blocks on to c over eBGP, and changes the filters between them in every direction.
func testTransit(t *testing.T, speakers []*speaker.Speaker) {
	exact := func(p string) bgp.Rule {
		return bgp.Rule{Prefix: netip.MustParsePrefix(p), Operator: bgp.Equal}
	}
	filtered := func(export, in []bgp.Rule) func(*policy.Config) {
		return func(c *policy.Config) {
			c.Filters = []bgp.Filter{{Name: "f", Export4: export, Import4: in}}
			c.Peers = append([]policy.Peer(nil), c.Peers...)
			c.Peers[1].Filters = []string{"f"}
		}
	}
	l := newLine(t, speakers, 74, 65001, filtered([]bgp.Rule{exact("192.168.1.0/26")}, []bgp.Rule{exact("192.168.30.0/26")}))

	eventually(t, "c has what the filter lets through", func() bool { return best(l.c)["192.168.2.0/26"].NextHop == l.addrB })
	require.Equal(t, []uint32{64512}, best(l.c)["192.168.2.0/26"].ASPath)
	require.NotContains(t, best(l.c), "192.168.1.0/26")
	eventually(t, "b has c's other route", func() bool { return best(l.b)["172.20.0.0/16"].NextHop == l.addrC })
	require.NotContains(t, best(l.b), "192.168.30.0/26")
	require.Equal(t, map[string]string{"192.168.30.0/26": "BGPFilter(f).importV4[0]"}, l.show(l.b, speaker.LookRejected, l.addrC))
	require.Equal(t, map[string]string{"172.20.0.0/16": "no filter matched"}, l.show(l.b, speaker.LookAccepted, l.addrC))
	withheld := l.show(l.b, speaker.LookWithheld, l.addrC)
	require.Equal(t, "BGPFilter(f).exportV4[0]", withheld["192.168.1.0/26"])
	require.NotContains(t, best(l.a), "172.20.0.0/16", "outside every pool")

	community, err := bgp.ParseCommunity("64512:7")
	require.NoError(t, err)
	accept := exact("192.168.1.0/26")
	accept.Accept, accept.Operations = true, []bgp.Operation{{AddCommunity: &community}, {Prepend: []uint32{64999, 64999}}}
	changes := l.change(filtered([]bgp.Rule{accept}, nil))
	require.Equal(t, []string{"Node_" + l.addrA.String(), "Node_" + l.addrC.String()}, changes.Refreshed)
	eventually(t, "c has the first block, changed", func() bool {
		p := best(l.c)["192.168.1.0/26"]
		return len(p.Communities) == 1 && p.Communities[0] == community
	})
	require.Equal(t, []uint32{64512, 64999, 64999, 64512}, best(l.c)["192.168.1.0/26"].ASPath)
	eventually(t, "a has c's block, which is in a pool", func() bool { return best(l.a)["192.168.30.0/26"].NextHop == l.addrC })

	l.change(func(c *policy.Config) {
		c.Peers = append([]policy.Peer(nil), c.Peers...)
		c.Peers[1].NextHop = policy.NextHopSelf
	})
	l.stillUp()
	changes = l.change(func(c *policy.Config) {
		c.Peers = append([]policy.Peer(nil), c.Peers...)
		c.Peers[1].NextHop = policy.NextHopKeep
	})
	require.Equal(t, []string{"Node_" + l.addrC.String() + " (number of paths sent)"}, changes.Restarted)
	eventually(t, "the next hop is kept", func() bool { return best(l.c)["192.168.2.0/26"].NextHop == l.addrA })
	l.sinceBC = state(t, l.c).Since.String()

	l.change(filtered([]bgp.Rule{{}}, []bgp.Rule{{}}))
	eventually(t, "nothing passes any more", func() bool { return len(best(l.c)) == 0 && len(best(l.b)) == 2 })
	eventually(t, "a lost c's block", func() bool { return len(best(l.a)) == 0 })
	l.stillUp()
}

// testReflector has b reflect between two clients, and stop doing so.
func testReflector(t *testing.T, speakers []*speaker.Speaker) {
	l := newLine(t, speakers, 75, 64512, func(c *policy.Config) {
		c.ClusterID = netip.MustParseAddr("244.0.0.1")
		c.Peers[0].ReflectorClient, c.Peers[1].ReflectorClient = true, true
	})
	eventually(t, "c has a's blocks through b", func() bool {
		return best(l.c)["192.168.1.0/26"].NextHop == l.addrA && best(l.c)["192.168.2.0/26"].NextHop == l.addrA
	})
	require.Equal(t, l.addrA, best(l.c)["192.168.1.0/26"].Originator)
	eventually(t, "a has c's block", func() bool { return best(l.a)["192.168.30.0/26"].NextHop == l.addrC })
	l.change(func(c *policy.Config) {
		c.Export.Pools = []policy.Pool{{Prefix: netip.MustParsePrefix("192.168.2.0/24"), DisableExport: true}, {Prefix: netip.MustParsePrefix("192.168.0.0/16")}}
	})
	eventually(t, "the hidden pool's block is taken back", func() bool { return len(best(l.c)) == 1 })
	require.Contains(t, best(l.c), "192.168.1.0/26")
	l.stillUp()

	// A peer that loses its role is started anew; nothing is reflected between plain peers.
	changes := l.change(func(c *policy.Config) {
		c.ClusterID = netip.Addr{}
		c.Peers = append([]policy.Peer(nil), c.Peers...)
		c.Peers[0].ReflectorClient, c.Peers[1].ReflectorClient = false, false
	})
	require.Len(t, changes.Restarted, 2)
	eventually(t, "nothing is reflected", func() bool {
		st := l.b.States()
		return st[l.addrA] == speaker.Established && st[l.addrC] == speaker.Established && len(best(l.c)) == 0 && len(best(l.a)) == 0
	})
}

// testCommunityFilter matches communities, standard and large, on routes that are passed on.
func testCommunityFilter(t *testing.T, speakers []*speaker.Speaker) {
	standard, large := policy.Community{Parts: [3]uint32{64512, 9}}, policy.Community{Large: true, Parts: [3]uint32{1, 2, 3}}
	l := newLine(t, speakers, 76, 65001, func(c *policy.Config) {
		c.Filters = []bgp.Filter{{Name: "f", Export4: []bgp.Rule{{Community: &standard}, {Accept: true, Community: &large, Operations: []bgp.Operation{{AddCommunity: &standard}}}}}}
		c.Peers[1].Filters = []string{"f"}
	})
	configA := config(l.addrA, 64512, peer(l.addrA, l.addrB, 64512, true))
	configA.Generation = 3
	configA.Originate = []policy.Origination{
		{Prefix: netip.MustParsePrefix("192.168.7.0/26"), Communities: []policy.Community{standard}},
		{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Communities: []policy.Community{large}}, // outside every pool of b's
		{Prefix: netip.MustParsePrefix("192.168.8.0/26"), Communities: []policy.Community{{Parts: [3]uint32{64512, 10}}}},
	}
	apply(t, l.a, configA)
	eventually(t, "c has what passes", func() bool {
		got := best(l.c)
		return len(got["10.1.0.0/16"].Communities) == 2 && got["192.168.8.0/26"].NextHop == l.addrB
	})
	require.Contains(t, best(l.b), "192.168.7.0/26")
	require.NotContains(t, best(l.c), "192.168.7.0/26")
	require.ElementsMatch(t, []policy.Community{standard, large}, best(l.c)["10.1.0.0/16"].Communities)
	l.stillUp()
}
