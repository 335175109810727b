package gobgp_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// testLoss has b lose a, which is alive and well: a's paths are gone in that moment, graceful restart or not, and so are those
// that the reflector c passes on, which lead to a. Then b finds a again.
func testLoss(t *testing.T, speakers []*speaker.Speaker) {
	a, b, c := speakers[0], speakers[1], speakers[2]
	addrA, addrB, addrC := loopback(79, 1), loopback(79, 2), loopback(79, 3)
	only, anycast := netip.MustParsePrefix("192.168.1.0/26"), netip.MustParsePrefix("192.168.9.0/26")
	feed := announce(a, only.String())
	feed.Announce(speaker.LocalRoute{Prefix: anycast})
	announce(c, anycast.String())
	announce(b, "192.168.2.0/26")

	ca := config(addrA, 64512, peer(addrA, addrB, 64512, true), peer(addrA, addrC, 64512, false))
	cb := config(addrB, 64512, peer(addrB, addrA, 64512, false), peer(addrB, addrC, 64512, false))
	cc := config(addrC, 64512, peer(addrC, addrA, 64512, true), peer(addrC, addrB, 64512, true))
	cc.ClusterID = netip.MustParseAddr("244.0.0.1")
	cc.Peers[0].ReflectorClient, cc.Peers[1].ReflectorClient = true, true
	for i, config := range []policy.Config{ca, cb, cc} {
		apply(t, speakers[i], config)
	}
	up := func() bool {
		return b.States()[addrA] == speaker.Established && b.States()[addrC] == speaker.Established && a.States()[addrC] == speaker.Established
	}
	eventually(t, "sessions are up", up)
	ways := func() []string {
		var out []string
		list, _, _ := b.ReadBest(0).Next(100)
		for _, p := range list {
			for _, path := range p.Paths {
				out = append(out, p.Prefix.String()+" by "+path.NextHop.String())
			}
		}
		slices.Sort(out)
		return slices.Compact(out) // c reflects what a sends
	}
	byA := []string{only.String() + " by " + addrA.String(), anycast.String() + " by " + addrA.String()}
	byC := anycast.String() + " by " + addrC.String()
	eventually(t, "b has both from a, and one from c too", func() bool { return slices.Equal(ways(), append(slices.Clone(byA), byC)) })
	eventually(t, "a has b's", func() bool { return best(a)["192.168.2.0/26"].NextHop == addrB })
	since := b.Sessions(addrC.String())[0].Since

	b.PeerLost(addrA, speaker.ByBFD, "BFD: control detection time expired")
	require.Equal(t, []string{byC}, ways(), "in that moment, and not by way of c either")
	eventually(t, "a's session has ended", func() bool { return a.States()[addrB] != speaker.Established })
	b.PeerLost(addrA, speaker.ByLink, "link eth0 is down")
	b.PeerFound(addrA, speaker.ByLink)
	require.Never(t, func() bool {
		return !slices.Equal(ways(), []string{byC}) || b.States()[addrA] != speaker.Idle
	}, 3*time.Second, 20*time.Millisecond, "it is held back while there is evidence")
	lost := b.Sessions(addrA.String())[0]
	require.Equal(t, "BFD: control detection time expired", lost.LastError)
	i := slices.IndexFunc(lost.History, func(h speaker.Transition) bool { return h.State == speaker.Idle })
	require.Equal(t, "BFD: control detection time expired", lost.History[i].Reason)
	eventually(t, "the engine does not choose a's path either", func() bool {
		chosen := false
		require.NoError(t, b.Show(t.Context(), speaker.LookTable, "", only, func(speaker.Judged) { chosen = true }))
		return !chosen
	})

	b.PeerFound(addrA, speaker.ByBFD)
	eventually(t, "the session is back", up)
	eventually(t, "so are the paths", func() bool { return best(b)[only.String()].Peer == addrA && len(ways()) == 3 })
	require.Equal(t, since, b.Sessions(addrC.String())[0].Since, "c noticed nothing")

	// A link that is soon back: the paths are hidden meanwhile, and the session goes on.
	before := b.Sessions(addrA.String())[0].Since
	b.PeerLost(addrA, speaker.ByLink, "link eth0 is down")
	require.NotEqual(t, addrA, best(b)[only.String()].Peer)
	b.PeerFound(addrA, speaker.ByLink)
	require.Equal(t, addrA, best(b)[only.String()].Peer)
	require.Equal(t, before, b.Sessions(addrA.String())[0].Since)

	// Lost by other evidence and found within a moment: the session still begins anew.
	before = b.Sessions(addrA.String())[0].Since
	b.PeerLost(addrA, speaker.ByBFD, "BFD: control detection time expired")
	b.PeerFound(addrA, speaker.ByBFD)
	eventually(t, "it is a new session", func() bool { return up() && b.Sessions(addrA.String())[0].Since.After(before) })
	eventually(t, "the paths are back", func() bool { return best(b)[only.String()].Peer == addrA })

	// A peer that leaves the configuration while it is lost is not held back when it returns.
	b.PeerLost(addrA, speaker.ByLink, "link eth0 is down")
	without := cb
	without.Generation, without.Peers = 10, cb.Peers[1:]
	apply(t, b, without)
	b.PeerFound(addrA, speaker.ByLink)
	cb.Generation = 11
	apply(t, b, cb)
	eventually(t, "the session is back", up)
	eventually(t, "the paths are back", func() bool { return best(b)[only.String()].Peer == addrA && len(ways()) == 3 })
}
