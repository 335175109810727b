package speaker

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func hop(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }

func pfx(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n >> 8), byte(n)}), 32)
}

// replica follows a table as felix does over a stream.
type replica struct {
	reader *BestReader
	behind int // how often it had to begin anew
	has    map[netip.Prefix]string
	fresh  map[netip.Prefix]bool // told since the reader began anew; nil once all was told
}

// begin goes on where the replica is, or anew.
func (r *replica) begin(table *bestTable, after uint64) {
	if r.reader = table.read(after); !r.reader.Resumed() {
		r.fresh = map[netip.Prefix]bool{}
	}
}

// step reads once, and tells whether there is more.
func (r *replica) step(t *testing.T, table *bestTable, limit int) bool {
	before := r.reader.Version()
	list, changed, err := r.reader.Next(limit)
	if err != nil {
		require.ErrorIs(t, err, ErrBehind)
		r.behind++
		r.begin(table, 0)
		return true
	}
	seen := map[netip.Prefix]bool{}
	for _, b := range list {
		require.Greater(t, b.Version, before, "versions grow")
		require.False(t, seen[b.Prefix], "a prefix comes once")
		before, seen[b.Prefix] = b.Version, true
		delete(r.has, b.Prefix)
		delete(r.fresh, b.Prefix)
		if len(b.Paths) > 0 {
			r.has[b.Prefix] = fmt.Sprint(b.Paths)
			if r.fresh != nil {
				r.fresh[b.Prefix] = true
			}
		}
	}
	if changed == nil {
		return true
	}
	if r.fresh != nil { // the end of the snapshot
		maps.DeleteFunc(r.has, func(p netip.Prefix, _ string) bool { return !r.fresh[p] })
		r.fresh = nil
	}
	return false
}

// TestReadersCatchUp changes a table at random, while readers of all speeds come, go and come back, some too slow for what is
// remembered. Whoever has caught up has what the table has.
func TestReadersCatchUp(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 3))
		table := newBestTable(50)
		engine := map[netip.Prefix][]Path{}
		dead := map[netip.Addr]bool{}
		replicas := make([]replica, 4)
		for i := range replicas {
			replicas[i].has = map[netip.Prefix]string{}
			replicas[i].begin(table, 0)
		}
		most := 0
		for i := range 6000 {
			// Prefixes come from a window that moves on, so that there are ever more to be forgotten.
			if i%10 == 0 {
				delete(engine, pfx(i/10))
				table.set(pfx(i/10), nil)
			}
			switch p := pfx(i/10 + 1 + r.IntN(100)); r.IntN(40) {
			case 0:
				if r.IntN(50) > 0 {
					continue
				}
				a := hop(r.IntN(3))
				dead[a] = !dead[a]
				table.setReachable(a, !dead[a])
			case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16:
				delete(engine, p)
				table.set(p, nil)
			default:
				paths := []Path{{Prefix: p, NextHop: hop(r.IntN(3)), Preference: uint32(r.IntN(2))}}
				if r.IntN(4) == 0 {
					paths = append(paths, Path{Prefix: p, NextHop: hop(r.IntN(3))})
				}
				engine[p] = paths
				table.set(p, paths)
			}
			most = max(most, table.live)
			if r.IntN(60) == 0 {
				one := &replicas[r.IntN(len(replicas))]
				one.step(t, table, 1+r.IntN(100))
				if r.IntN(10) == 0 { // the stream breaks
					one.begin(table, one.reader.Version())
				}
			}
		}
		want := map[netip.Prefix]string{}
		for p, paths := range engine {
			var live []Path
			for _, path := range paths {
				if !dead[path.NextHop] {
					live = append(live, path)
				}
			}
			if len(live) > 0 {
				want[p] = fmt.Sprint(live)
			}
		}
		require.Equal(t, len(want), table.size())
		behind := 0
		for i := range replicas {
			for replicas[i].step(t, table, 64) {
			}
			require.Equal(t, want, replicas[i].has, "seed %d", seed)
			behind += replicas[i].behind
		}
		require.NotZero(t, behind, "some were too slow")
		require.LessOrEqual(t, table.removed, 2*(table.kept+most), "what is remembered stays bounded")
		require.LessOrEqual(t, len(table.log), 2*table.entries.Len()+table.kept, "the log stays bounded")
	}
}

// TestAllGoAtOnce has a reader look away while every prefix goes: it is told so, and need not begin anew. Later changes have
// the table forget them.
func TestAllGoAtOnce(t *testing.T) {
	const all, kept = 2000, 50
	table := newBestTable(kept)
	for n := range all {
		table.set(pfx(n), []Path{{Prefix: pfx(n), NextHop: hop(1)}})
	}
	follower := replica{has: map[netip.Prefix]string{}}
	follower.begin(table, 0)
	for follower.step(t, table, 100) {
	}
	require.Len(t, follower.has, all)
	for n := range all {
		table.set(pfx(n), nil)
	}
	for follower.step(t, table, 100) {
	}
	require.Zero(t, follower.behind)
	require.Empty(t, follower.has)
	for n := all; n < 4*all; n++ {
		table.set(pfx(n), []Path{{Prefix: pfx(n), NextHop: hop(1)}})
		table.set(pfx(n), nil)
	}
	require.LessOrEqual(t, table.removed, 4*kept)
	require.LessOrEqual(t, len(table.log), 2*table.entries.Len()+kept)
}

// TestNoNews makes no change of what readers see into no change of version.
func TestNoNews(t *testing.T) {
	table := newBestTable(keptRemovals)
	paths := []Path{{Prefix: pfx(1), NextHop: hop(1)}}
	table.set(pfx(1), paths)
	_, changed, _ := table.since(0, 1)
	table.set(pfx(1), []Path{{Prefix: pfx(1), NextHop: hop(1)}})
	table.set(pfx(2), nil)
	require.False(t, table.setReachable(hop(9), true))
	select {
	case <-changed:
		t.Fatal("told of a change that is none")
	default:
	}
	require.Equal(t, uint64(1), table.version)
}
