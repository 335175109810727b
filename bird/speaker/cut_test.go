package speaker

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCuts loses and finds peers at random, while paths change: readers see what is left without them, and each peer that
// others lead to is reported once.
func TestCuts(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 9))
		table := newBestTable(50)
		detours := 0
		table.detours = func() { detours++ }
		engine, lost := map[netip.Prefix][]Path{}, map[netip.Addr]bool{}
		follower := replica{has: map[netip.Prefix]string{}}
		follower.begin(table, 0)
		visible := func(p Path) bool { return !lost[p.Peer] && !lost[p.NextHop] }
		for range 2000 {
			p := pfx(r.IntN(100))
			switch r.IntN(20) {
			case 0: // lost
				a := hop(r.IntN(4))
				lost[a] = true
				table.cut(a)
			case 1: // found, after its session has ended
				a := hop(r.IntN(4))
				if !lost[a] {
					continue
				}
				delete(lost, a)
				for prefix, paths := range engine {
					engine[prefix] = slices.DeleteFunc(slices.Clone(paths), func(p Path) bool { return p.Peer == a })
				}
				table.mend(a)
			case 2, 3, 4:
				delete(engine, p)
				table.set(p, nil)
			default:
				var paths []Path
				for range 1 + r.IntN(3) {
					paths = append(paths, Path{Prefix: p, NextHop: hop(r.IntN(4)), Peer: hop(r.IntN(4))})
				}
				engine[p] = paths
				table.set(p, paths)
			}
			if r.IntN(100) == 0 {
				follower.step(t, table, 10)
			}
			for _, a := range table.unreachable() {
				require.True(t, lost[a])
			}
		}
		for follower.step(t, table, 10) {
		}
		want, behind := map[netip.Prefix]string{}, map[netip.Addr]bool{}
		for p, paths := range engine {
			var live []Path
			for _, path := range paths {
				if visible(path) {
					live = append(live, path)
				}
				if lost[path.NextHop] && !lost[path.Peer] {
					behind[path.NextHop] = true
				}
			}
			if len(live) > 0 {
				want[p] = fmt.Sprint(live)
			}
		}
		require.Equal(t, want, follower.has, "seed %d", seed)
		for a := range behind {
			require.Contains(t, table.unreachable(), a)
		}
		require.NotZero(t, detours)
	}
}

// TestLosses keeps a peer until all evidence is gone and its session has ended.
func TestLosses(t *testing.T) {
	l := losses{byPeer: map[netip.Addr]*loss{}}
	a := hop(1)
	add := func(by Evidence) (news, end bool) {
		_, news, end = l.add(a, by, "gone")
		return news, end
	}
	last := func(by Evidence) bool {
		last, _ := l.clear(a, by)
		return last
	}
	both := func(news, end bool) [2]bool { return [2]bool{news, end} }
	require.False(t, last(ByBFD), "it was not lost")
	require.Equal(t, both(true, true), both(add(ByBFD)))
	require.Equal(t, both(false, false), both(add(ByLink)), "it was lost already")
	require.Equal(t, []netip.Addr{a}, l.pending())
	require.False(t, last(ByBFD))
	require.True(t, last(ByLink))
	require.False(t, last(ByLink))
	require.Empty(t, l.over(), "its session is still there")
	require.True(t, l.hold(a))
	l.dropped(a)
	require.Empty(t, l.pending())
	require.Equal(t, []netip.Addr{a}, l.over())
	require.False(t, l.hold(a))
}

// TestLinkGrace spares the session of a peer whose link is soon back.
func TestLinkGrace(t *testing.T) {
	l := losses{byPeer: map[netip.Addr]*loss{}}
	a := hop(1)
	first, news, end := l.add(a, ByLink, "link eth0 is down")
	require.True(t, news)
	require.False(t, end)
	require.True(t, l.hold(a))
	require.False(t, l.ends(a), "what becomes of its session is its own doing")
	require.Empty(t, l.pending())
	last, ending := l.clear(a, ByLink)
	require.True(t, last)
	require.False(t, ending)
	require.False(t, l.hold(a), "nothing is left of it")

	second, _, _ := l.add(a, ByLink, "link eth0 is down")
	require.False(t, l.expire(a, first), "that was another time")
	require.True(t, l.expire(a, second))
	require.False(t, l.expire(a, second))
	require.True(t, l.ends(a))
	require.Equal(t, []netip.Addr{a}, l.pending())

	b := hop(2)
	third, _, _ := l.add(b, ByLink, "link eth0 is down")
	_, news, end = l.add(b, ByBFD, "BFD: x")
	require.False(t, news)
	require.True(t, end, "BFD knows more than the link")
	require.False(t, l.expire(b, third))
}
