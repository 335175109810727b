package speaker

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
)

// TestFixed changes what the engine has and what the configuration fixes, at random and in any order: a reader sees the
// configuration's route, or nothing, or the engine's path, and after the configuration lets go the engine's again.
func TestFixed(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 9))
		table := newBestTable(50)
		engine := map[netip.Prefix][]Path{}
		static := map[netip.Prefix]netip.Addr{}
		var unrouted []netip.Prefix
		one := replica{has: map[netip.Prefix]string{}}
		one.begin(table, 0)
		for range 500 {
			if r.IntN(10) > 0 {
				p := pfx(r.IntN(12))
				var paths []Path
				if r.IntN(3) > 0 {
					paths = []Path{{Prefix: p, NextHop: hop(r.IntN(5)), Preference: uint32(r.IntN(3))}}
				}
				engine[p] = paths
				table.set(p, paths)
			} else {
				clear(static)
				for range r.IntN(3) {
					static[pfx(r.IntN(14))] = hop(9)
				}
				unrouted = nil
				if r.IntN(2) == 0 {
					unrouted = []netip.Prefix{netip.PrefixFrom(pfx(4*r.IntN(4)).Addr(), 30)}
				}
				var routes []policy.StaticRoute
				for _, p := range slices.SortedFunc(maps.Keys(static), netip.Prefix.Compare) {
					routes = append(routes, policy.StaticRoute{Prefix: p, Gateway: static[p]})
				}
				table.fix(routes, unrouted)
			}
			if r.IntN(4) > 0 {
				continue
			}
			for limit := 1 + r.IntN(5); one.step(t, table, limit); {
			}
			want := map[netip.Prefix]string{}
			for p, paths := range engine {
				hidden := slices.ContainsFunc(unrouted, func(u netip.Prefix) bool { return u.Contains(p.Addr()) })
				if len(paths) > 0 && !hidden {
					want[p] = fmt.Sprint(paths)
				}
			}
			for p, gateway := range static {
				want[p] = fmt.Sprint([]Path{{Prefix: p, NextHop: gateway, Origin: StaticOrigin, Preference: policy.PreferenceOf(1024)}})
			}
			require.Equal(t, want, one.has, "seed %d", seed)
		}
	}
}
