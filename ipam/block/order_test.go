package block

import (
	"hash/fnv"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func head(seq iter.Seq[netip.Prefix], n int) []netip.Prefix {
	var out []netip.Prefix
	for p := range seq {
		if out = append(out, p); len(out) == n {
			break
		}
	}
	return out
}

// TestOrderVectors pins the start that Calico computes; the IPv6 rows were written by it.
func TestOrderVectors(t *testing.T) {
	for _, tc := range []struct {
		node string
		seed uint32
		pool string
		bits int
		want string
	}{
		{"node-a", 568266999, "192.168.0.0/16", 26, "192.168.174.128/26"},
		{"node-a", 568266999, "10.244.0.0/22", 26, "10.244.2.128/26"},
		{"node-b", 568266996, "192.168.0.0/16", 26, "192.168.218.64/26"},
		{"node-b", 568266996, "10.244.0.0/22", 26, "10.244.2.64/26"},
		{"worker-1", 2999756865, "192.168.0.0/16", 26, "192.168.226.64/26"},
		{"worker-3", 2999756867, "192.168.0.0/16", 26, "192.168.97.192/26"},
		{"worker-1", 2999756865, "fd00:77::/64", 122, "fd00:77::9905:f003:c7bd:fb00/122"},
		{"worker-3", 2999756867, "fd00:77::/64", 122, "fd00:77::8bfb:736f:425f:4a80/122"},
	} {
		h := fnv.New32()
		h.Write([]byte(tc.node))
		assert.Equal(t, tc.seed, h.Sum32(), tc.node)
		o := NewOrder(netip.MustParsePrefix(tc.pool), tc.bits, tc.node, time.Unix(0, 1))
		assert.Equal(t, prefixes(tc.want), head(o.Positions(Reserved{}), 1), "%s in %s", tc.node, tc.pool)
	}
}

func TestOrderVisitsEachPositionOnce(t *testing.T) {
	for _, tc := range []struct {
		pool string
		bits int
		n    int
	}{
		{"10.0.0.0/22", 26, 16},
		{"10.0.0.0/26", 26, 1},
		{"10.0.0.0/29", 32, 8},
		{"fd00::/120", 122, 4},
		{"fd00::/124", 128, 16},
		{"255.255.255.0/24", 26, 4},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 122, 4},
	} {
		pool := netip.MustParsePrefix(tc.pool)
		o := NewOrder(pool, tc.bits, "node-a", time.Unix(0, 7))
		all := slices.Collect(o.Positions(Reserved{}))
		require.Len(t, all, tc.n, tc.pool)
		assert.True(t, slices.IsSortedFunc(all, o.Compare))
		seen := map[netip.Prefix]bool{}
		for i, p := range all {
			assert.True(t, pool.Contains(p.Addr()) && p == p.Masked() && p.Bits() == tc.bits, p)
			assert.False(t, seen[p])
			seen[p] = true
			if i > 0 && p.Addr() != pool.Addr() {
				assert.Equal(t, last(all[i-1]).Next(), p.Addr(), "one step up")
			}
		}
	}
}

func TestOrderOfSingleAddressesStartsAnywhere(t *testing.T) {
	pool := netip.MustParsePrefix("10.0.0.0/24")
	first := map[netip.Prefix]bool{}
	for ns := range int64(50) {
		first[head(NewOrder(pool, 32, "node-a", time.Unix(0, ns)).Positions(Reserved{}), 1)[0]] = true
	}
	assert.Greater(t, len(first), 10)
}

func TestOrderLeapsOverReservedStretches(t *testing.T) {
	// 2^58 positions, all reserved but one: a walk that looked at each would never end.
	pool := netip.MustParsePrefix("fd00::/64")
	free := netip.MustParsePrefix("fd00::1234:0/122")
	var reserved []netip.Prefix
	for bits := 65; bits <= 122; bits++ {
		half := netip.PrefixFrom(free.Addr(), bits).Masked()
		sibling := netip.PrefixFrom(flip(half.Addr(), bits-1), bits)
		reserved = append(reserved, sibling)
	}
	o := NewOrder(pool, 122, "worker-1", time.Time{})
	assert.Equal(t, []netip.Prefix{free}, slices.Collect(o.Positions(NewReserved(reserved...))))
	assert.Empty(t, slices.Collect(o.Positions(NewReserved(append(reserved, free)...))))
	assert.Empty(t, slices.Collect(o.Positions(NewReserved(netip.MustParsePrefix("fd00::/16")))))
}

func flip(a netip.Addr, bit int) netip.Addr {
	b := a.As16()
	b[bit/8] ^= 0x80 >> (bit % 8)
	return netip.AddrFrom16(b)
}

// TestReservedAgainstList compares the merged ranges with asking each prefix.
func TestReservedAgainstList(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		random := func() netip.Prefix {
			if r.IntN(4) == 0 {
				return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(r.IntN(64))}), 122+r.IntN(7))
			}
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(64))}), 26+r.IntN(7))
		}
		var list []netip.Prefix
		for range r.IntN(8) {
			list = append(list, random())
		}
		set := NewReserved(list...)
		in := func(a netip.Addr) bool {
			return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		p, count, covered := random().Masked(), int64(0), true
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			require.Equal(t, in(a), set.Contains(a), "%v in %v", a, list)
			covered = covered && in(a)
			if in(a) {
				count++
			}
		}
		require.Equal(t, covered, set.Covers(p), "%v in %v", p, list)
		require.Equal(t, count, set.Count(p).Int64(), "%v in %v", p, list)

		pool := netip.MustParsePrefix("10.0.0.0/26")
		o := NewOrder(pool, 29, "x", time.Time{})
		var want []netip.Prefix
		for p := range o.Positions(Reserved{}) {
			if !set.Covers(p) {
				want = append(want, p)
			}
		}
		require.Equal(t, want, slices.Collect(o.Positions(set)), "%v", list)
	}
	whole := NewReserved(prefixes("0.0.0.0/1", "128.0.0.0/1", "::/0")...)
	assert.True(t, whole.Covers(netip.MustParsePrefix("0.0.0.0/0")))
	assert.True(t, whole.Contains(netip.MustParseAddr("255.255.255.255")))
	assert.True(t, whole.Covers(netip.MustParsePrefix("::/0")))
	assert.Equal(t, "4294967296", whole.Count(netip.MustParsePrefix("0.0.0.0/0")).String())
	assert.Equal(t, "4294967296", Addresses(netip.MustParsePrefix("0.0.0.0/0")).String())
	assert.False(t, Reserved{}.Contains(netip.MustParseAddr("::1")))
}
