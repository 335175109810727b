package gobgp_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// TestQuietWithdrawals has two routers announce and take back routes at random, of which some may go on to another peer, while
// it changes which. In the end the peer has what it may have, and it never is told that anything is gone which it could not have.
func TestQuietWithdrawals(t *testing.T) {
	s, stop := launch(t)
	t.Cleanup(stop)
	own, other := loopback(94, 1), loopback(94, 2)
	routers := []netip.Addr{loopback(94, 3), loopback(94, 4)}
	announce(s)
	c := config(own, 64512, rawSession(own, other, 64512), rawSession(own, routers[0], 65001), rawSession(own, routers[1], 65001))
	always, sometimes := policy.Pool{Prefix: netip.MustParsePrefix("20.9.0.0/16")}, policy.Pool{Prefix: netip.MustParsePrefix("20.1.0.0/16")}
	c.Export.Pools = []policy.Pool{always, sometimes}
	apply(t, s, c)
	hears := dialMute(t, other, own, 64512)
	raw := []*rawPeer{dialRaw(t, routers[0], own, 65001), dialRaw(t, routers[1], own, 65001)}

	random := rand.New(rand.NewPCG(9, 11))
	has := []map[byte]bool{{}, {}} // of 20.1.0.0/16, what each router has announced
	lets := true
	for range 600 {
		i, n := random.IntN(len(raw)), byte(random.IntN(8))
		kinds := slices.Concat(onWire(0, n), onWire(1, n)) // outside the pools, and inside the one that comes and goes
		switch random.IntN(12) {
		case 0:
			lets = !lets
			c.Generation++
			if c.Export.Pools = []policy.Pool{always}; lets {
				c.Export.Pools = []policy.Pool{always, sometimes}
			}
			apply(t, s, c)
		case 1, 2, 3, 4, 5, 6:
			raw[i].withdraw(kinds)
			delete(has[i], n)
		default:
			med := attribute(optional, 4, 0, 0, 0, byte(random.IntN(3)))
			raw[i].update(slices.Concat(goodOrigin, asPath(65001), goodNextHop, med), kinds)
			has[i][n] = true
		}
	}
	want := map[string]bool{}
	for n := range byte(8) {
		if lets && (has[0][n] || has[1][n]) {
			want[offWire(1, n)] = true
		}
	}

	got := map[string]bool{}
	// What is said of different prefixes within a moment may be told in another order: what the first round's routes overtake,
	// the second's do not.
	for round := range byte(2) {
		last := map[string]bool{}
		for i, r := range raw {
			n := 2*round + byte(i)
			r.update(slices.Concat(goodOrigin, asPath(65001), goodNextHop), onWire(9, n))
			last[offWire(9, n)], want[offWire(9, n)] = true, true
		}
		for len(last) > 0 {
			require.NoError(t, hears.conn.SetReadDeadline(time.Now().Add(time.Minute)))
			kind, body, err := hears.read()
			require.NoError(t, err)
			if kind != bgp.BGP_MSG_UPDATE {
				continue
			}
			u := &bgp.BGPUpdate{}
			require.NoError(t, u.DecodeFromBytes(body))
			for _, w := range u.WithdrawnRoutes {
				require.False(t, strings.HasPrefix(w.String(), "20.0."), "%s was never told", w)
				delete(got, w.String())
			}
			for _, p := range u.NLRI {
				got[p.String()] = true
				delete(last, p.String())
			}
		}
	}
	require.Equal(t, want, got)
}

// TestRoutesOfAPeerThatIsAway are judged again, too, when policy changes: one that is expected back has routes in the table.
func TestRoutesOfAPeerThatIsAway(t *testing.T) {
	s, stop := launch(t)
	t.Cleanup(stop)
	own, other, router := loopback(95, 1), loopback(95, 2), loopback(95, 3)
	announce(s)
	c := config(own, 64512, rawSession(own, other, 64512), rawSession(own, router, 65001))
	always, sometimes := policy.Pool{Prefix: netip.MustParsePrefix("20.9.0.0/16")}, policy.Pool{Prefix: netip.MustParsePrefix("20.1.0.0/16")}
	c.Export.Pools = []policy.Pool{always, sometimes}
	apply(t, s, c)
	hears := dialMute(t, other, own, 64512)
	raw := dialRaw(t, router, own, 65001,
		bgp.NewCapGracefulRestart(false, false, 120, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv4_UC, true)}))
	attributes := slices.Concat(goodOrigin, asPath(65001), goodNextHop)
	raw.update(attributes, slices.Concat(onWire(1, 1), onWire(9, 1)))
	has := map[string]bool{}
	hears.until(has, func() bool { return has[offWire(1, 1)] && has[offWire(9, 1)] })
	require.NoError(t, raw.conn.Close())
	eventually(t, "the router is away", func() bool { return s.States()[router] != speaker.Established })
	require.Contains(t, best(s), offWire(1, 1), "it is expected back")

	c.Generation++
	c.Export.Pools = []policy.Pool{always}
	apply(t, s, c)
	hears.until(has, func() bool { return !has[offWire(1, 1)] })
	require.True(t, has[offWire(9, 1)])
}

// until follows what a peer is told it may have, until something is so.
func (p *rawPeer) until(has map[string]bool, so func() bool) {
	p.t.Helper()
	for !so() {
		require.NoError(p.t, p.conn.SetReadDeadline(time.Now().Add(time.Minute)))
		kind, body, err := p.read()
		require.NoError(p.t, err)
		if kind != bgp.BGP_MSG_UPDATE {
			continue
		}
		u := &bgp.BGPUpdate{}
		require.NoError(p.t, u.DecodeFromBytes(body))
		for _, w := range u.WithdrawnRoutes {
			delete(has, w.String())
		}
		for _, n := range u.NLRI {
			has[n.String()] = true
		}
	}
}

// BenchmarkWithdraw measures, for 20,000 routes that a router announces to one of four nodes and takes back, the time until
// the node has none of them, and until it has told the others all that it tells them, and what that costs in CPU for all.
func BenchmarkWithdraw(b *testing.B) {
	const routes, nodes = 20000, 4
	for i := range b.N {
		speakers := make([]*speaker.Speaker, nodes)
		addrs, router := make([]netip.Addr, nodes), loopback(93, 5*i+1)
		for j := range nodes {
			speakers[j], addrs[j] = start(b), loopback(93, 5*i+2+j)
			announce(speakers[j])
		}
		for j := range nodes {
			var peers []policy.Peer
			for k := range nodes {
				if k != j {
					mate := peer(addrs[j], addrs[k], 64512, j > k)
					mate.Type = policy.PeerMesh
					peers = append(peers, mate)
				}
			}
			if j == 0 {
				peers = append(peers, rawSession(addrs[j], router, 65001))
			}
			apply(b, speakers[j], config(addrs[j], 64512, peers...))
		}
		raw := dialRaw(b, router, addrs[0], 65001)
		await := func(ok func() bool) {
			for !ok() {
				time.Sleep(time.Millisecond) // the poll of a benchmark, not a wait of a test
			}
		}
		await(func() bool {
			up := 0
			for _, s := range speakers {
				for _, st := range s.States() {
					if st == speaker.Established {
						up++
					}
				}
			}
			return up == nodes*(nodes-1)+1
		})
		attributes := slices.Concat(goodOrigin, asPath(65001), goodNextHop)
		var all [][]byte
		for n := range routes {
			if n%500 == 0 {
				all = append(all, nil)
			}
			all[len(all)-1] = append(all[len(all)-1], 24, 20, byte(n>>8), byte(n))
		}
		said := feedOf(speakers[0])
		phase := func(name string, say func([]byte), has int, mark string) {
			began, before := time.Now(), cpu()
			for _, prefixes := range all {
				say(prefixes)
			}
			await(func() bool { return speakers[0].Status().Prefixes == has })
			b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/"+name)
			said.Announce(speaker.LocalRoute{Prefix: netip.MustParsePrefix(mark)})
			await(func() bool {
				for _, s := range speakers[1:] {
					if _, told := best(s)[mark]; !told {
						return false
					}
				}
				return true
			})
			b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/"+name+"-told")
			b.ReportMetric(float64((cpu() - before).Milliseconds()), "cpu-ms/"+name)
		}
		phase("announce", func(p []byte) { raw.update(attributes, p) }, routes, "192.168.1.0/26")
		phase("withdraw", raw.withdraw, 0, "192.168.2.0/26")
	}
}

func feedOf(s *speaker.Speaker) *speaker.Feed {
	f := s.Feed()
	f.SnapshotEnd()
	return f
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
