package wire

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"
)

// message is an UPDATE as gobgp writes it.
func message(t testing.TB, m *bgp.BGPMessage, o ...*bgp.MarshallingOption) []byte {
	t.Helper()
	b, err := m.Serialize(o...)
	require.NoError(t, err)
	return b
}

// heard is what a stream of messages says of each prefix, in order.
func heard(t testing.TB, stream []byte, o ...*bgp.MarshallingOption) (says map[string][]string, messages int) {
	t.Helper()
	says = map[string][]string{}
	for ; len(stream) > 0; messages++ {
		n := int(binary.BigEndian.Uint16(stream[lengthAt:]))
		require.LessOrEqual(t, n, MaxLen)
		m, err := bgp.ParseBGPMessage(stream[:n], o...)
		require.NoError(t, err)
		stream = stream[n:]
		u := m.Body.(*bgp.BGPUpdate)
		for _, p := range u.WithdrawnRoutes {
			says[name(p)] = append(says[name(p)], "gone")
		}
		var reached, gone []bgp.AddrPrefixInterface
		attributes := ""
		for _, a := range u.PathAttributes {
			switch a := a.(type) {
			case *bgp.PathAttributeMpReachNLRI:
				reached = a.Value
				attributes += fmt.Sprint("by ", a.Nexthop, ";")
			case *bgp.PathAttributeMpUnreachNLRI:
				gone = a.Value
			default:
				attributes += a.String() + ";"
			}
		}
		for _, p := range u.NLRI {
			reached = append(reached, p)
		}
		for _, p := range reached {
			says[name(p)] = append(says[name(p)], attributes)
		}
		for _, p := range gone {
			says[name(p)] = append(says[name(p)], "gone")
		}
	}
	return says, messages
}

func name(p bgp.AddrPrefixInterface) string { return fmt.Sprint(p, " ", p.PathIdentifier()) }

// options are those of a session, of paths with numbers if it is said so.
func options(numbered bool) *bgp.MarshallingOption {
	mode := bgp.BGP_ADD_PATH_NONE
	if numbered {
		mode = bgp.BGP_ADD_PATH_BOTH
	}
	return &bgp.MarshallingOption{AddPath: map[bgp.RouteFamily]bgp.BGPAddPathMode{bgp.RF_IPv4_UC: mode, bgp.RF_IPv6_UC: mode}}
}

// said6 says something of one IPv6 prefix: that it is reached with this discriminator, or gone.
func said6(prefix netip.Prefix, id uint32, reached bool, discriminator uint32) *bgp.BGPMessage {
	p := bgp.NewIPv6AddrPrefix(uint8(prefix.Bits()), prefix.Addr().String())
	p.SetPathLocalIdentifier(id)
	list := []bgp.AddrPrefixInterface{p}
	if !reached {
		return bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{bgp.NewPathAttributeMpUnreachNLRI(list)}, nil)
	}
	return bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(0), bgp.NewPathAttributeMpReachNLRI("fd00::1", list), bgp.NewPathAttributeMultiExitDisc(discriminator),
	}, nil)
}

func said4(id uint32, reached bool, discriminator uint32, prefixes ...netip.Prefix) *bgp.BGPMessage {
	var list []*bgp.IPAddrPrefix
	for _, prefix := range prefixes {
		p := bgp.NewIPAddrPrefix(uint8(prefix.Bits()), prefix.Addr().String())
		p.SetPathLocalIdentifier(id)
		list = append(list, p)
	}
	if !reached {
		return bgp.NewBGPUpdateMessage(list, nil, nil)
	}
	return bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(0), bgp.NewPathAttributeNextHop("10.0.0.1"), bgp.NewPathAttributeMultiExitDisc(discriminator),
	}, list)
}

// TestPackerSaysTheSame packs random messages of which many are about the same few prefixes: of each prefix the same is said in
// the same order.
func TestPackerSaysTheSame(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 1))
		numbered := seed%2 == 1
		o, p := options(numbered), NewPacker(numbered, numbered)
		var plain, packed []byte
		few := 1 << random.IntN(12)
		for range 3000 {
			id := uint32(0)
			if numbered {
				id = random.Uint32N(3)
			}
			one := func() uint16 { return uint16(random.IntN(few)) }
			reached, discriminator := random.IntN(4) > 0, random.Uint32N(3)
			var m *bgp.BGPMessage
			switch random.IntN(20) {
			case 0:
				packed = p.Flush(packed) // as before a KEEPALIVE
				continue
			case 1, 2, 3, 4, 5, 6, 7, 8, 9:
				v6 := [16]byte{0xfd, 1}
				binary.BigEndian.PutUint16(v6[2:], one())
				m = said6(netip.PrefixFrom(netip.AddrFrom16(v6), 33+random.IntN(90)), id, reached, discriminator)
			default:
				var list []netip.Prefix
				for range 1 + random.IntN(3) {
					n := one()
					list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n)}), 24))
				}
				m = said4(id, reached, discriminator, list...)
			}
			b := message(t, m, o)
			plain = append(plain, b...)
			if !p.Add(b) {
				require.True(t, p.Waiting(), "what is not taken at first stands against something")
				packed = p.Flush(packed)
				require.True(t, p.Add(b))
			}
		}
		packed = p.Flush(packed)
		require.False(t, p.Waiting())
		want, before := heard(t, plain, o)
		got, after := heard(t, packed, o)
		require.Equal(t, want, got)
		require.Less(t, after, before)
	}
}

// TestPackerPacksWell has as few messages as there can be.
func TestPackerPacksWell(t *testing.T) {
	for _, reached := range []bool{true, false} {
		p := NewPacker(false, false)
		var packed []byte
		const prefixes = 10_000
		for n := range prefixes {
			a := netip.MustParseAddr("fd00:192::").As16()
			binary.BigEndian.PutUint16(a[6:], uint16(n))
			b := message(t, said6(netip.PrefixFrom(netip.AddrFrom16(a), 64), 0, reached, uint32(n%2)))
			if !p.Add(b) {
				packed = p.Flush(packed)
				require.True(t, p.Add(b))
			}
		}
		packed = p.Flush(packed)
		said, messages := heard(t, packed)
		require.Len(t, said, prefixes)
		const flushes, room = prefixes*9/maxWaiting + 1, MaxLen - 100
		require.LessOrEqual(t, messages, prefixes*9/room+2*flushes+1)
	}
}

// TestPackerLeavesAlone are messages that are none of its business, and of which it must not lose the place.
func TestPackerLeavesAlone(t *testing.T) {
	mixed := said4(0, true, 1, netip.MustParsePrefix("10.0.0.0/24"))
	mixed.Body.(*bgp.BGPUpdate).WithdrawnRoutes = []*bgp.IPAddrPrefix{bgp.NewIPAddrPrefix(24, "10.0.1.0")}
	both := said6(netip.MustParsePrefix("fd00:1::/64"), 0, true, 1)
	both.Body.(*bgp.BGPUpdate).PathAttributes = append(both.Body.(*bgp.BGPUpdate).PathAttributes,
		bgp.NewPathAttributeMpUnreachNLRI([]bgp.AddrPrefixInterface{bgp.NewIPv6AddrPrefix(64, "fd00:2::")}))
	full := said6(netip.MustParsePrefix("fd00:1::/64"), 0, true, 1)
	const header = 4 // of the attribute that fills it
	rest := MaxLen - header - len(message(t, full))
	full.Body.(*bgp.BGPUpdate).PathAttributes = append(full.Body.(*bgp.BGPUpdate).PathAttributes, bgp.NewPathAttributeUnknown(0xd0, 99, make([]byte, rest)))
	for what, m := range map[string]*bgp.BGPMessage{
		"keepalive": bgp.NewBGPKeepAliveMessage(), "notification": bgp.NewBGPNotificationMessage(6, 2, nil),
		"End-of-RIB": bgp.NewEndOfRib(bgp.RF_IPv4_UC), "End-of-RIB of IPv6": bgp.NewEndOfRib(bgp.RF_IPv6_UC),
		"refresh": bgp.NewBGPRouteRefreshMessage(1, 0, 1), "withdrawals beside routes": mixed, "both at once": both,
		"no room for a prefix": full,
	} {
		p := NewPacker(false, false)
		require.False(t, p.Add(message(t, m)), what)
		require.False(t, p.Waiting(), what)
	}
}

// FuzzPacker gives it arbitrary messages, whatever their paths: what it takes it gives back, byte for byte if it was alone.
func FuzzPacker(f *testing.F) {
	for _, m := range []*bgp.BGPMessage{
		said4(0, true, 1, netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/25")),
		said4(0, false, 1, netip.MustParsePrefix("10.0.0.0/24")), said6(netip.MustParsePrefix("fd00:1::/64"), 0, true, 1),
		said6(netip.MustParsePrefix("fd00:1::/64"), 0, false, 1), bgp.NewEndOfRib(bgp.RF_IPv6_UC),
	} {
		f.Add(message(f, m), false)
	}
	f.Add(message(f, said6(netip.MustParsePrefix("fd00:1::/64"), 7, true, 1), options(true)), true)
	f.Fuzz(func(t *testing.T, m []byte, numbered bool) {
		p := NewPacker(numbered, numbered)
		if !p.Add(m) {
			return
		}
		require.True(t, p.Add(m), "said again it stands against nothing")
		once := NewPacker(numbered, numbered)
		require.True(t, once.Add(m))
		again := once.Flush(nil)
		s, family, prefixes, ok := read(m)
		require.True(t, ok)
		s2, family2, prefixes2, ok := read(again)
		require.True(t, ok, hex.EncodeToString(again))
		require.Equal(t, family, family2)
		require.Equal(t, prefixes, prefixes2)
		require.Equal(t, s.appendKey(nil), s2.appendKey(nil))
	})
}
