package client

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/thorough"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

func prefix(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 0, byte(n)}), 32)
}

func hop(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }

func bestOf(p netip.Prefix, hops ...netip.Addr) *birdv1.RoutesResponse {
	m := &birdv1.BestPaths{Prefixes4: append(p.Addr().AsSlice(), byte(p.Bits()))}
	for _, h := range hops {
		m.Paths = append(m.Paths, &birdv1.Path{NextHop: h.AsSlice()})
	}
	return &birdv1.RoutesResponse{Response: &birdv1.RoutesResponse_Best{Best: &birdv1.BestBatch{Groups: []*birdv1.BestPaths{m}}}}
}

func welcome(instance string, resumed bool) *birdv1.RoutesResponse {
	return &birdv1.RoutesResponse{Response: &birdv1.RoutesResponse_Welcome{Welcome: &birdv1.RoutesWelcome{Instance: instance, Resumed: resumed}}}
}

var snapshotEnd = &birdv1.RoutesResponse{Response: &birdv1.RoutesResponse_SnapshotEnd{SnapshotEnd: true}}

// TestInboxOverBreaks plays a bird that changes, breaks its streams off at any point, and sometimes begins anew. What felix is
// told adds up to what bird has whenever a snapshot is whole, and no prefix that bird has before and after is ever taken
// back between.
func TestInboxOverBreaks(t *testing.T) {
	for seed := range thorough.Rounds(40, 200) {
		r := rand.New(rand.NewPCG(uint64(seed), 5))
		in := newInbox()
		bird, felix := map[netip.Prefix][]netip.Addr{}, map[netip.Prefix][]netip.Addr{}
		sequence, instance := uint64(0), 0
		put := func(m *birdv1.RoutesResponse) {
			sequence++
			m.Sequence = sequence
			require.NoError(t, in.put(m))
		}
		take := func() {
			u, _ := in.take()
			hops := map[netip.Addr]bool{}
			for _, b := range u.Best {
				delete(felix, b.Prefix)
				for _, p := range b.Paths {
					felix[b.Prefix] = append(felix[b.Prefix], p.NextHop)
				}
			}
			for _, list := range felix {
				for _, h := range list {
					hops[h] = true
				}
			}
			if len(u.Best) > 0 {
				slices.SortFunc(u.NextHops, netip.Addr.Compare)
				require.Equal(t, slices.SortedFunc(maps.Keys(hops), netip.Addr.Compare), u.NextHops)
			}
		}
		for range 30 {
			at, seen := in.position()
			resumed := at == fmt.Sprint(instance) && seen == sequence && r.IntN(4) > 0
			if r.IntN(5) == 0 {
				instance, resumed = instance+1, false
			}
			put(welcome(fmt.Sprint(instance), resumed))
			complete := true
			if !resumed {
				for p, hops := range bird {
					if complete = r.IntN(40) > 0; !complete {
						break
					}
					put(bestOf(p, hops...))
					if r.IntN(3) == 0 {
						take()
					}
				}
			}
			if complete {
				put(snapshotEnd)
				take()
				require.Equal(t, bird, felix, "seed %d", seed)
			}
			for range r.IntN(20) {
				p := prefix(r.IntN(30))
				delete(bird, p)
				if r.IntN(3) > 0 {
					bird[p] = []netip.Addr{hop(r.IntN(4))}
				}
				if complete {
					put(bestOf(p, bird[p]...))
				}
				if r.IntN(4) == 0 {
					take()
				}
			}
			if !complete { // the changes came after the break
				sequence += 100
			}
		}
	}
}

// TestOutbox says everything again to a new stream, and each thing once however often it changed.
func TestOutbox(t *testing.T) {
	r := (&Client{}).Routes(slog.New(slog.DiscardHandler))
	r.Announce(LocalRoute{Prefix: prefix(1), Metric: 512})
	r.Announce(LocalRoute{Prefix: prefix(2)})
	r.Withdraw(prefix(2))
	r.NextHop(hop(1), false, 0)
	r.SnapshotEnd()
	for range 2 {
		r.begin()
		out := r.pending()
		require.Len(t, out, 3)
		require.Equal(t, uint32(512), out[0].GetLocal().GetMetric())
		require.False(t, out[1].GetNextHop().GetReachable())
		require.True(t, out[2].GetSnapshotEnd(), "last")
		require.Empty(t, r.pending())
	}
	for i := range 10 {
		r.Announce(LocalRoute{Prefix: prefix(3), Metric: uint32(i)})
	}
	r.Withdraw(prefix(1))
	r.Applied(7)
	r.Applied(9)
	out := r.pending()
	require.Len(t, out, 3)
	require.Equal(t, uint64(9), out[2].GetApplied())
	require.Equal(t, []netip.Addr{hop(1), hop(5)}, r.judged([]netip.Addr{hop(5)}))
}

// TestShown has sessions in the words of calicoctl's table.
func TestShown(t *testing.T) {
	for want, p := range map[string]Peer{
		"up Established": {State: Established, LastError: "Socket: Connection refused"},
		"start Active Socket: Connection refused": {State: Active, LastError: "Socket: Connection refused"},
		"start Passive": {State: Active, Passive: true},
		"start Idle":    {State: Idle},
		"down Down: the address is Global_x of BGPPeer(a)'s": {State: Down, ShadowedBy: "Global_x of BGPPeer(a)"},
	} {
		require.Equal(t, want, p.Protocol()+" "+p.Info())
	}
	require.Equal(t, "node-to-node mesh", Mesh.String())
	require.Equal(t, "unknown", PeerType(0).String())
	require.Equal(t, "Unknown", State(99).String())
}
