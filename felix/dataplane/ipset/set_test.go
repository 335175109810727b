package ipset

import (
	"encoding/hex"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

type kernel map[Element]struct{}

func (k kernel) want(e Element, in bool) {
	if in {
		k[e] = struct{}{}
		return
	}
	delete(k, e)
}

func (k kernel) list() (out []string) {
	for e := range k {
		out = append(out, hex.EncodeToString([]byte(e)))
	}
	slices.Sort(out)
	return out
}

func net(s string) view.Member { return view.Member{Prefix: netip.MustParsePrefix(s)} }

func TestElements(t *testing.T) {
	for _, c := range []struct {
		name    string
		kind    view.SetType
		family  int
		members []view.Member
		want    []string
	}{
		{
			"addresses and prefixes", view.SetNet, 4,
			[]view.Member{net("10.0.0.1/32"), net("10.0.1.0/24")},
			[]string{"0a0000010a000002", "0a0001000a000200"},
		},
		{
			"carry into the next byte", view.SetNet, 4,
			[]view.Member{net("10.0.0.255/32"), net("10.255.0.0/16")},
			[]string{"0a0000ff0a000100", "0aff00000b000000"},
		},
		{
			"the end of the space has no end", view.SetNet, 4,
			[]view.Member{net("255.255.255.255/32"), net("128.0.0.0/2")},
			[]string{"80000000c0000000", "ffffffff"},
		},
		{"everything", view.SetNet, 4, []view.Member{net("0.0.0.0/0"), net("10.0.0.0/8")}, []string{"00000000"}},
		{
			"other family ignored, host bits masked", view.SetNet, 6,
			[]view.Member{net("10.0.0.1/32"), net("fd00::1/64")},
			[]string{"fd00000000000000" + "0000000000000000" + "fd00000000000001" + "0000000000000000"},
		},
		{
			"named port", view.SetIPPort, 4,
			[]view.Member{{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Protocol: 6, Port: 8080}},
			[]string{"0a000001" + "06000000" + "1f900000"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := kernel{}
			New(c.kind, c.family, k.want).Replace(c.members)
			assert.Equal(t, c.want, k.list())
		})
	}
}

// TestIncrementalEqualsFromScratch adds and removes overlapping prefixes at random and compares with the obvious: those
// members that no other member contains.
func TestIncrementalEqualsFromScratch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	k := kernel{}
	s := New(view.SetNet, 4, k.want)
	members := map[view.Member]struct{}{}
	for range 2_000 {
		bits := []int{0, 8, 20, 24, 25, 30, 31, 32}[r.IntN(8)]
		if bits == 0 && r.IntN(10) > 0 {
			bits = 32
		}
		m := view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(3)), byte(r.IntN(256))}), bits).Masked()}
		if r.IntN(2) == 0 {
			s.Add(m)
			members[m] = struct{}{}
		} else {
			s.Remove(m)
			delete(members, m)
		}
		if r.IntN(50) == 0 {
			fresh := kernel{}
			want := kernel{}
			scratch := New(view.SetNet, 4, fresh.want)
			scratch.Replace(slices.Collect(maps.Keys(members))) // in no order
			all := slices.Collect(maps.Keys(members))
			for m := range members {
				if !slices.ContainsFunc(all, func(o view.Member) bool {
					return o != m && o.Prefix.Overlaps(m.Prefix) && o.Prefix.Bits() < m.Prefix.Bits()
				}) {
					want.want(s.element(m), true)
				}
			}
			require.Equal(t, want.list(), k.list())
			require.Equal(t, want.list(), fresh.list())
		}
	}
}
