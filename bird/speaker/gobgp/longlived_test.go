package gobgp_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// testLongLived has a peer die that is expected back within a second, and whose routes may do for two more then. They are the
// last choice: next to those of another peer felix is not told of them, alone it is, until their time is over.
func testLongLived(t *testing.T, speakers []*speaker.Speaker) {
	const third = 82
	s, own, mortal, other := speakers[0], loopback(third, 1), loopback(third, 2), loopback(third, 3)
	lasting := rawSession(own, mortal, 65001)
	lasting.LongLivedStaleTime = time.Hour // of ours, of which the peer is told
	apply(t, s, config(own, 64512, lasting, rawSession(own, other, 65001)))
	raw := dialRaw(t, mortal, own, 65001,
		bgp.NewCapGracefulRestart(false, false, 1, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv4_UC, true)}),
		bgp.NewCapLongLivedGracefulRestart([]*bgp.CapLongLivedGracefulRestartTuple{bgp.NewCapLongLivedGracefulRestartTuple(bgp.RF_IPv4_UC, true, 2)}))
	fresh := dialRaw(t, other, own, 65001)
	eventually(t, "sessions are up", func() bool {
		return s.States()[mortal] == speaker.Established && s.States()[other] == speaker.Established
	})
	nextHop := func(a netip.Addr) []byte { return attribute(wellKnown, 3, a.AsSlice()...) }
	ways := func() (stale []bool, from []netip.Addr) {
		list, _, _ := s.ReadBest(0).Next(1 << 20)
		for _, b := range list {
			for _, p := range b.Paths {
				from, stale = append(from, p.Peer), append(stale, policy.IsLongLivedStale(p.Communities))
			}
		}
		return stale, from
	}
	raw.update(slices.Concat(goodOrigin, asPath(65001), nextHop(mortal)), onWire(1, 1))
	fresh.update(slices.Concat(goodOrigin, asPath(65001), nextHop(other)), onWire(1, 1))
	eventually(t, "both ways are equally good", func() bool { _, from := ways(); return len(from) == 2 })

	require.NoError(t, raw.conn.Close())
	eventually(t, "the way of the dead peer is kept for the time of a restart, and is no choice any more then", func() bool {
		_, from := ways()
		return slices.Equal(from, []netip.Addr{other})
	})
	require.NoError(t, fresh.conn.Close()) // no restart is expected of it
	eventually(t, "the way of the dead peer is the last one", func() bool {
		stale, from := ways()
		return slices.Equal(from, []netip.Addr{mortal}) && stale[0]
	})
	eventually(t, "its time is over", func() bool { _, from := ways(); return len(from) == 0 })
}
