package gobgp_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// hears counts prefixes and the messages in which they come, until there are so many prefixes.
func (p *rawPeer) hears(prefixes int, of func(*bgp.BGPUpdate) int) (messages int) {
	p.t.Helper()
	for prefixes > 0 {
		require.NoError(p.t, p.conn.SetReadDeadline(time.Now().Add(time.Minute)))
		kind, body, err := p.read()
		require.NoError(p.t, err)
		if kind != bgp.BGP_MSG_UPDATE {
			continue
		}
		u := new(bgp.BGPUpdate)
		require.NoError(p.t, u.DecodeFromBytes(body))
		if n := of(u); n > 0 {
			messages++
			prefixes -= n
		}
	}
	return messages
}

// testPacked has routes come and go while a session is up: gobgp writes an UPDATE for each, and the peer reads few. Then it
// changes what gobgp would change on the connection that it takes for its own.
func testPacked(t *testing.T, speakers []*speaker.Speaker) {
	s, own, other := speakers[0], loopback(91, 1), loopback(91, 2)
	c := config(own, 64512, rawSession(own, other, 64512))
	apply(t, s, c)
	raw := dialMute(t, other, own, 64512)
	eventually(t, "the session is up", func() bool { return s.States()[other] == speaker.Established })

	const routes = 2000
	feed := announce(s)
	prefix := func(n int) netip.Prefix {
		a := [4]byte{192, 168}
		binary.BigEndian.PutUint16(a[2:], uint16(n)<<2)
		return netip.PrefixFrom(netip.AddrFrom4(a), 30)
	}
	for n := range routes {
		feed.Announce(speaker.LocalRoute{Prefix: prefix(n)})
	}
	require.Less(t, raw.hears(routes, func(u *bgp.BGPUpdate) int { return len(u.NLRI) }), routes/2)
	for n := range routes {
		feed.Withdraw(prefix(n))
	}
	require.Less(t, raw.hears(routes, func(u *bgp.BGPUpdate) int { return len(u.WithdrawnRoutes) }), routes/2)

	for i, hops := range []uint8{3, 0} {
		c.Generation, c.Peers = uint64(3+i), []policy.Peer{c.Peers[0]}
		c.Peers[0].TTLSecurity = hops
		changes, err := s.Apply(c)
		require.NoError(t, err)
		require.Len(t, changes.Restarted, 1)
	}
	eventually(t, "the session has ended", func() bool { return s.States()[other] != speaker.Established })
	raw.conn.Close()
	dialMute(t, other, own, 64512)
	eventually(t, "the session is up again", func() bool { return s.States()[other] == speaker.Established })
}
