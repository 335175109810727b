package gobgp_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/speaker"
)

// testFailedAttempts has peers die that are expected back, and fail in several ways before they are: their routes are kept for
// as long as they may take, and no longer.
func testFailedAttempts(t *testing.T, speakers []*speaker.Speaker) {
	const third, as, other = 83, 65001, 65002
	s, own, slow, gone := speakers[0], loopback(third, 1), loopback(third, 2), loopback(third, 3)
	apply(t, s, config(own, 64512, rawSession(own, slow, as), rawSession(own, gone, as)))
	graceful := func(seconds uint16) bgp.ParameterCapabilityInterface {
		return bgp.NewCapGracefulRestart(true, false, seconds, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv4_UC, true)})
	}
	first, second := dialRaw(t, slow, own, as, graceful(600)), dialRaw(t, gone, own, as, graceful(4))
	route := slices.Concat(goodOrigin, asPath(as), goodNextHop)
	first.update(route, onWire(1, 1))
	first.update(route, onWire(1, 2))
	second.update(route, onWire(1, 3))
	has := func(n byte) bool { return best(s)[offWire(1, n)].Origin != "" }
	eventually(t, "the routes are there", func() bool { return has(1) && has(2) && has(3) })
	fails := func(peer netip.Addr, as uint32, last *bgp.BGPMessage, why string) {
		t.Helper()
		attempt := dialUntil(t, peer, own, as, func(p *rawPeer) error { return p.open(peer, nil) })
		if last != nil {
			_ = attempt.say(last) // there is no answer
		}
		require.NoError(t, attempt.conn.Close())
		eventually(t, why, func() bool {
			list := s.Sessions(peer.String())
			return len(list) == 1 && list[0].LastError == why
		})
	}

	require.NoError(t, second.conn.Close())
	fails(gone, as, nil, "Socket: Connection closed during the handshake")
	eventually(t, "the time of the restart is over", func() bool { return !has(3) })

	require.NoError(t, first.conn.Close())
	fails(slow, as, nil, "Socket: Connection closed during the handshake")
	fails(slow, as, bgp.NewBGPNotificationMessage(bgp.BGP_ERROR_CEASE, bgp.BGP_ERROR_SUB_CONNECTION_COLLISION_RESOLUTION, nil), speaker.Refused)
	fails(slow, other, nil, "Error: peer says its AS is 65002, configured 65001")
	require.True(t, has(1) && has(2), "the routes are kept")
	first = dialRaw(t, slow, own, as, graceful(600))
	first.update(route, onWire(1, 1))
	first.update(nil, nil) // End-of-RIB
	eventually(t, "what it has no more is gone", func() bool { return !has(2) })
	require.True(t, has(1))
}
