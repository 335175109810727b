package route

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/delta"
)

// A ledger does whatever happens to it as two maps would.
func TestLedgerIsATracker(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	l := newLedger()
	want := delta.New[desired.RouteKey](desired.Route.Equal)
	hops := []desired.NextHop{{Via: netip.MustParseAddr("10.0.0.1"), Link: "eth0"}, {Via: netip.MustParseAddr("10.0.0.2"), Link: "eth0"}}
	route := func() desired.Route {
		r := desired.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(random.IntN(9))}), 16), Table: 254, Protocol: 80, Metric: random.IntN(2)}
		if random.IntN(4) == 0 {
			r.Dst = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(random.IntN(9))}), 16+random.IntN(2))
		}
		switch random.IntN(4) {
		case 0:
			r.Kind = desired.Blackhole
		case 1:
			r.NextHops = hops
		case 2:
			r.NextHops = []desired.NextHop{hops[1], hops[0]} // the same to the kernel
		default:
			r.NextHops = hops[:1]
		}
		return r
	}
	for range 3000 {
		r := route()
		switch random.IntN(6) {
		case 0, 1:
			l.SetDesired(r.Key(), r)
			want.SetDesired(r.Key(), r)
		case 2:
			l.DeleteDesired(r.Key())
			want.DeleteDesired(r.Key())
		case 3, 4:
			l.SetActual(r.Key(), r)
			want.SetActual(r.Key(), r)
		default:
			l.DeleteActual(r.Key())
			want.DeleteActual(r.Key())
		}
		if random.IntN(100) == 0 {
			all := map[desired.RouteKey]desired.Route{}
			for range random.IntN(9) {
				r := route()
				all[r.Key()] = r
			}
			l.ReplaceActual(all)
			want.ReplaceActual(all)
		}
		wanted, ok := want.Desired(r.Key())
		got, is := l.Desired(r.Key())
		require.Equal(t, wanted, got)
		require.Equal(t, ok, is)
		wanted, ok = want.Actual(r.Key())
		got, is = l.Actual(r.Key())
		require.Equal(t, wanted, got)
		require.Equal(t, ok, is)
		require.Equal(t, ok, l.Has(r.Key()))
		require.Equal(t, maps.Collect(want.AllDesired()), maps.Collect(l.AllDesired()))
		require.Equal(t, maps.Collect(want.AllActual()), maps.Collect(l.AllActual()))
		require.Equal(t, maps.Collect(want.Updates()), maps.Collect(l.Updates()))
		require.Equal(t, maps.Collect(want.Deletes()), maps.Collect(l.Deletes()))
	}
}
