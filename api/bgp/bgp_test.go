package bgp_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/bgp"
)

func TestMatchesPrefix(t *testing.T) {
	for _, row := range []struct {
		rule  bgp.Rule
		yes   []string
		no    []string
		about string
	}{
		{bgp.Rule{}, []string{"10.0.0.0/8", "fd00::/8"}, nil, "no prefix"},
		{bgp.Rule{Operator: bgp.Equal}, []string{"10.0.0.0/16"}, []string{"10.0.0.0/8", "10.0.0.0/17", "fd00::/16"}, "equal"},
		{bgp.Rule{Operator: bgp.NotEqual}, []string{"10.0.0.0/8", "10.0.0.0/17"}, []string{"10.0.0.0/16"}, "not equal"},
		{bgp.Rule{Operator: bgp.In}, []string{"10.0.0.0/16", "10.0.1.0/32"}, []string{"10.0.0.0/8", "10.1.0.0/16", "a00::/16"}, "in"},
		{bgp.Rule{Operator: bgp.In, MinLength: 20, MaxLength: 24}, []string{"10.0.0.0/20", "10.0.1.0/24"}, []string{"10.0.0.0/16", "10.0.0.0/25"}, "in, limited"},
		{bgp.Rule{Operator: bgp.In, MinLength: 8}, []string{"10.0.0.0/16"}, []string{"10.0.0.0/8"}, "clamped to the prefix"},
		{bgp.Rule{Operator: bgp.NotIn, MaxLength: 24}, []string{"10.0.0.0/25", "11.0.0.0/16"}, []string{"10.0.0.0/24"}, "not in negates the whole"},
	} {
		if row.rule.Operator != bgp.NoPrefix {
			row.rule.Prefix = netip.MustParsePrefix("10.0.0.0/16")
		}
		for _, p := range row.yes {
			require.True(t, row.rule.MatchesPrefix(netip.MustParsePrefix(p)), "%s: %s", row.about, p)
		}
		for _, p := range row.no {
			require.False(t, row.rule.MatchesPrefix(netip.MustParsePrefix(p)), "%s: %s", row.about, p)
		}
	}
}

func TestRuleAsSentence(t *testing.T) {
	standard, large := bgp.Community{Parts: [3]uint32{64512, 7}}, bgp.Community{Large: true, Parts: [3]uint32{1, 2, 3}}
	for want, r := range map[string]bgp.Rule{
		"reject": {},
		"accept if in 10.0.0.0/16 and length from 20 and length to 24 and community 1:2:3": {
			Accept: true, Operator: bgp.In, Prefix: netip.MustParsePrefix("10.0.0.0/16"), MinLength: 20, MaxLength: 24, Community: &large,
		},
		"accept if from remote peers and interface cali* and iBGP and path begins with [1 2] and priority 5, add community 64512:7, prepend [9 9], set priority 3": {
			Accept: true, FromRemotePeers: true, Interface: "cali*", SessionType: bgp.Internal, ASPrefix: []uint32{1, 2}, Priority: 5,
			Operations: []bgp.Operation{{AddCommunity: &standard}, {Prepend: []uint32{9, 9}}, {SetPriority: 3}},
		},
	} {
		require.Equal(t, want, r.String())
	}
}

func TestRulesByList(t *testing.T) {
	f := bgp.Filter{Import4: make([]bgp.Rule, 1), Export4: make([]bgp.Rule, 2), Import6: make([]bgp.Rule, 3), Export6: make([]bgp.Rule, 4)}
	for name, n := range map[string]int{"importV4": 1, "exportV4": 2, "importV6": 3, "exportV6": 4} {
		for _, v6 := range []bool{false, true} {
			for _, export := range []bool{false, true} {
				if bgp.ListName(v6, export) == name {
					require.Len(t, f.Rules(v6, export), n)
				}
			}
		}
	}
}

// FuzzParseCommunity checks that whatever is read is written the same.
func FuzzParseCommunity(f *testing.F) {
	for _, s := range []string{"1:2", "65535:65535", "1:2:3", "65536:1", ":", "1:2:3:4", "-1:2", "4294967295:0:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := bgp.ParseCommunity(s)
		if err != nil {
			return
		}
		again, err := bgp.ParseCommunity(c.String())
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}
