package prefixes_test

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/prefixes"
)

// A Map does whatever happens to it as a map by netip.Prefix would.
func TestMapIsAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	keys := []netip.Prefix{{}, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"), netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 33)}
	for i := range 50 {
		keys = append(keys,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0xff, 1}), random.IntN(33)), // host bits count
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}), random.IntN(129)),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: 10, 13: byte(i)}), 120), // IPv4 in IPv6
		)
	}
	var m prefixes.Map[int]
	want := map[netip.Prefix]int{}
	for i := range 20000 {
		k := keys[random.IntN(len(keys))]
		if random.IntN(3) == 0 {
			delete(want, k)
			m.Delete(k)
		} else {
			want[k] = i
			m.Set(k, i)
		}
		wanted, there := want[k]
		got, ok := m.Get(k)
		require.Equal(t, wanted, got)
		require.Equal(t, there, ok)
		require.Equal(t, there, m.Has(k))
		require.Equal(t, len(want), m.Len())
	}
	require.Equal(t, want, maps.Collect(m.All()))
	for k := range m.All() {
		m.Delete(k)
	}
	require.Zero(t, m.Len())
}
