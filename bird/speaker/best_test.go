package speaker

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func hop(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }

func pfx(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n >> 8), byte(n)}), 32)
}

// reader follows a table as a stream does.
type reader struct {
	version uint64
	has     map[netip.Prefix]string
}

func (r *reader) follow(t *testing.T, table *bestTable, limit int) {
	if !table.knows(r.version) {
		r.version, r.has = 0, map[netip.Prefix]string{}
	}
	for {
		list, _ := table.since(r.version, limit)
		seen := map[netip.Prefix]bool{}
		for _, b := range list {
			require.Greater(t, b.Version, r.version, "versions grow")
			require.False(t, seen[b.Prefix], "a prefix comes once")
			seen[b.Prefix] = true
			r.version = b.Version
			if len(b.Paths) == 0 {
				delete(r.has, b.Prefix)
				continue
			}
			r.has[b.Prefix] = fmt.Sprint(b.Paths)
		}
		if len(list) < limit {
			return
		}
	}
}

// TestReadersCatchUp changes a table at random, while readers of all speeds come, go and come back. Whoever has caught up has
// what the table has.
func TestReadersCatchUp(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 3))
		table := newBestTable(50)
		engine := map[netip.Prefix][]Path{}
		dead := map[netip.Addr]bool{}
		readers := make([]reader, 4)
		for i := range readers {
			readers[i].has = map[netip.Prefix]string{}
		}
		for range 3000 {
			switch p := pfx(r.IntN(300)); r.IntN(40) {
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
			if r.IntN(300) == 0 {
				readers[r.IntN(len(readers))].follow(t, table, 1+r.IntN(100))
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
		for i := range readers {
			readers[i].follow(t, table, 64)
			require.Equal(t, want, readers[i].has, "seed %d", seed)
		}
		require.LessOrEqual(t, table.removed, 2*table.kept)
		require.LessOrEqual(t, len(table.log), 2*len(table.entries)+table.kept, "the log stays bounded")
	}
}

// TestNoNews makes no change of what readers see into no change of version.
func TestNoNews(t *testing.T) {
	table := newBestTable(keptRemovals)
	paths := []Path{{Prefix: pfx(1), NextHop: hop(1)}}
	table.set(pfx(1), paths)
	_, changed := table.since(0, 1)
	table.set(pfx(1), []Path{{Prefix: pfx(1), NextHop: hop(1)}})
	table.set(pfx(2), nil)
	require.False(t, table.setReachable(hop(9), true))
	select {
	case <-changed:
		t.Fatal("told of a change that is none")
	default:
	}
	require.Equal(t, uint64(1), table.head())
}
