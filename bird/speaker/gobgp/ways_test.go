package gobgp_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/speaker/gobgp"
)

// TestWaysAgree has the same said to three speakers, by two peers each: one takes paths as gobgp has them, the others have
// reason not to, and are told by protobuf. In the end all have the same.
func TestWaysAgree(t *testing.T) {
	engines := []newEngine{gobgp.New, gobgp.NewOfOtherFilters, gobgp.NewOfOtherPaths}
	got := make([]map[netip.Prefix][]string, len(engines))
	t.Run("listen", func(t *testing.T) {
		for i, engine := range engines {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				got[i] = heardBy(t, engine, 3*i)
			})
		}
	})
	for _, other := range got[1:] {
		require.Equal(t, got[0], other)
	}
}

// heardBy is the paths that a speaker holds after all was said; its address, and those of its peers, follow number.
func heardBy(t *testing.T, engine newEngine, number int) map[netip.Prefix][]string {
	s, stop := launchOn(t, engine)
	t.Cleanup(stop)
	own, peers := loopback(92, number+1), []netip.Addr{loopback(92, number+2), loopback(92, number+3)}
	announce(s)
	apply(t, s, config(own, 64512, rawSession(own, peers[0], 65001), rawSession(own, peers[1], 65001)))
	raw := []*rawPeer{dialRaw(t, peers[0], own, 65001), dialRaw(t, peers[1], own, 65001)}
	chatter(raw)
	require.Eventually(t, func() bool {
		b := best(s)
		return b[offWire(9, 0)].NextHop.IsValid() && b[offWire(9, 1)].NextHop.IsValid()
	}, time.Minute, 20*time.Millisecond, "all was said")
	out := map[netip.Prefix][]string{}
	list, _, err := s.ReadBest(0).Next(1 << 20)
	require.NoError(t, err)
	several := false
	for _, b := range list {
		several = several || len(b.Paths) > 1
		for _, p := range b.Paths {
			p.Peer = netip.AddrFrom4([4]byte{127, 0, 0, byte(slices.Index(peers, p.Peer))}) // the rest is the same for all
			out[b.Prefix] = append(out[b.Prefix], fmt.Sprint(p))
		}
		slices.Sort(out[b.Prefix])
	}
	require.True(t, several, "some prefixes have two paths that are equally good")
	return out
}

// chatter announces and withdraws at random, and last announces a mark for each peer.
func chatter(raw []*rawPeer) {
	random := rand.New(rand.NewPCG(7, 8))
	variants := [][]byte{
		nil,
		attribute(optional, 4, 0, 0, 0, 5),
		attribute(transitive, 8, 0, 1, 0, 2, 0, 3, 0, 4),
		attribute(transitive, 32, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3),
	}
	for range 500 {
		p := raw[random.IntN(len(raw))]
		var prefixes []byte
		for range 1 + random.IntN(20) {
			prefixes = append(prefixes, onWire(byte(random.IntN(2)), byte(random.IntN(50)))...)
		}
		if random.IntN(4) == 0 {
			p.withdraw(prefixes)
		} else {
			p.update(slices.Concat(goodOrigin, asPath(65001), goodNextHop, variants[random.IntN(len(variants))]), prefixes)
		}
	}
	for i, p := range raw {
		p.update(slices.Concat(goodOrigin, asPath(65001), goodNextHop), onWire(9, byte(i)))
	}
}

// withdraw sends an UPDATE that takes these prefixes back.
func (p *rawPeer) withdraw(prefixes []byte) {
	p.t.Helper()
	m := append(slices.Repeat([]byte{255}, 16), 0, 0, bgp.BGP_MSG_UPDATE)
	m = binary.BigEndian.AppendUint16(m, uint16(len(prefixes)))
	m = append(append(m, prefixes...), 0, 0)
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	_, err := p.conn.Write(m)
	require.NoError(p.t, err)
}
