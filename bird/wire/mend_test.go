package wire

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"
)

// onWire is an attribute with the length that it says, whatever its value.
func onWire(flags, kind, length byte, value ...byte) []byte {
	return slices.Concat([]byte{flags, kind, length}, value)
}

// TestMend are the attributes that do not end where they should, in all places.
func TestMend(t *testing.T) {
	origin := slices.Clip(onWire(0x40, 1, 1, 0))
	prefix, other := []byte{24, 10, 0, 1}, []byte{24, 10, 0, 2}
	reach := onWire(0x80, 14, 5+16+9, append(append([]byte{0, 2, 1, 16}, make([]byte, 17)...), 64, 0xfd, 0, 0, 1, 0, 0, 0, 0)...)
	unreach := func(f byte, n byte) []byte {
		return slices.Clip(onWire(0x80, 15, 3+9, 0, f, 1, 64, 0xfd, 0, 0, n, 0, 0, 0, 0))
	}
	for _, c := range []struct {
		name string
		in   update
		want Mended
		out  update
	}{
		{"sound", update{nil, origin, prefix}, Sound, update{nil, origin, prefix}},
		{"nothing at all", update{}, Sound, update{}},
		{"longer than the message", update{nil, append(origin, onWire(0xc0, 8, 200, 0, 1)...), prefix}, Withdrawn, update{withdrawn: prefix}},
		{"reaches into the prefixes", update{nil, append(origin, onWire(0xc0, 8, 8, 0, 1, 0, 1)...), prefix}, Withdrawn, update{withdrawn: prefix}},
		{"of one byte", update{nil, append(origin, 0xc0), prefix}, Withdrawn, update{withdrawn: prefix}},
		{"of two bytes", update{nil, append(origin, 0xc0, 8), prefix}, Withdrawn, update{withdrawn: prefix}},
		{"of half a length", update{nil, append(origin, 0xd0, 8, 0), prefix}, Withdrawn, update{withdrawn: prefix}},
		{"beside withdrawals", update{other, append(origin, 0xc0, 8), prefix}, Withdrawn, update{withdrawn: slices.Concat(other, prefix)}},
		{"after IPv6", update{nil, slices.Concat(reach, onWire(0xc0, 8, 8, 0)), nil}, Withdrawn, update{attributes: unreach(2, 1)}},
		{
			"after IPv6 of both kinds",
			update{nil, slices.Concat(reach, unreach(2, 2), onWire(0xc0, 8, 8, 0)), nil},
			Withdrawn,
			update{attributes: onWire(0x80, 15, 3+18, 0, 2, 1, 64, 0xfd, 0, 0, 1, 0, 0, 0, 0, 64, 0xfd, 0, 0, 2, 0, 0, 0, 0)},
		},
		{"after withdrawals of IPv6", update{nil, append(unreach(2, 2), 0xc0), prefix}, Withdrawn, update{withdrawn: prefix, attributes: unreach(2, 2)}},
		{"no routes", update{nil, append(origin, 0xc0, 8), nil}, Unreadable, update{}},
		{"before the routes", update{nil, slices.Concat(onWire(0xc0, 8, 200, 0), reach), nil}, Unreadable, update{}},
		{"withdrawals alone", update{nil, append(unreach(2, 2), 0xc0), nil}, Unreadable, update{}},
		{"after IPv6 that is cut", update{nil, slices.Concat(onWire(0x80, 14, 4, 0, 2, 1, 16), []byte{0xc0}), prefix}, Unreadable, update{}},
		{"after withdrawals that are cut", update{nil, slices.Concat(onWire(0x80, 15, 2, 0, 2), []byte{0xc0}), prefix}, Unreadable, update{}},
		{"after two families", update{nil, slices.Concat(reach, unreach(1, 2), []byte{0xc0}), nil}, Unreadable, update{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := c.in.append(nil)
			before := slices.Clone(in)
			got, mended := Mend(in)
			require.Equal(t, before, in, "what came in is left as it is")
			require.Equal(t, c.want, mended)
			read := new(bgp.BGPUpdate)
			err := read.DecodeFromBytes(got[HeaderLen:])
			if c.want == Unreadable {
				var costs *bgp.MessageError
				require.ErrorAs(t, err, &costs)
				require.Equal(t, bgp.ERROR_HANDLING_SESSION_RESET, costs.ErrorHandling)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.out.append(nil), got)
		})
	}
	for _, cut := range [][]byte{{0}, {0, 5, 0, 0}, {0, 0, 0, 5, 0}} {
		in := slices.Concat(marker, []byte{0, byte(HeaderLen + len(cut)), typeUpdate}, cut)
		got, mended := Mend(in)
		require.Equal(t, in, got)
		require.Equal(t, Sound, mended)
	}
}

// TestWithhold takes back what bears a mark, whatever else it bears, and nothing else.
func TestWithhold(t *testing.T) {
	const as = 1<<32 - 1
	marks := func(list ...uint32) bgp.PathAttributeInterface {
		a := bgp.NewPathAttributeLargeCommunities(nil)
		for _, n := range list {
			a.Values = append(a.Values, bgp.NewLargeCommunity(n, 1, 2))
		}
		return a
	}
	p4, p6 := netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00:1::/64")
	for _, c := range []struct {
		say, gone *bgp.BGPMessage
	}{{said4(7, true, 1, p4), said4(7, false, 1, p4)}, {said6(p6, 7, true, 1), said6(p6, 7, false, 1)}} {
		u := c.say.Body.(*bgp.BGPUpdate)
		plain := u.PathAttributes
		for _, marked := range []bool{false, true} {
			list := []uint32{1, 2}
			if marked {
				list = []uint32{1, as, 2}
			}
			u.PathAttributes = append(slices.Clip(plain), marks(list...))
			c.say.Header.Len = 0 // of what it was before
			in := message(t, c.say, options(true))
			got := Withhold(in, as)
			if !marked {
				require.Equal(t, in, got)
				continue
			}
			require.Equal(t, message(t, c.gone, options(true)), got)
			require.Equal(t, got, Withhold(got, as), "a withdrawal bears none")
		}
	}
	keepalive := message(t, bgp.NewBGPKeepAliveMessage())
	require.Equal(t, keepalive, Withhold(keepalive, as))
}

// FuzzMend mends arbitrary bodies: what comes out is sound, or costs the session.
func FuzzMend(f *testing.F) {
	f.Add([]byte{0, 0, 0, 4, 0x40, 1, 1, 0, 24, 10, 0, 1})
	f.Add([]byte{0, 0, 0, 3, 0xc0, 8, 200, 24, 10, 0, 1})
	f.Add([]byte{0, 4, 24, 10, 0, 2, 0, 1, 0xc0, 24, 10, 0, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > MaxLen-HeaderLen {
			return
		}
		in := slices.Concat(marker, []byte{0, 0, typeUpdate}, body)
		binary.BigEndian.PutUint16(in[lengthAt:], uint16(len(in)))
		got, mended := Mend(in)
		if _, ok := parse(Withhold(got, 1)); mended == Sound {
			_, before := parse(in)
			require.Equal(t, before, ok)
		}
		u, ok := parse(got)
		switch mended {
		case Sound:
			require.Equal(t, in, got)
		case Withdrawn:
			require.True(t, ok)
			require.Empty(t, u.prefixes)
			again, mended := Mend(got)
			require.Equal(t, Sound, mended)
			require.Equal(t, got, again)
		case Unreadable:
			require.False(t, ok)
			require.Len(t, got, len(in))
		}
	})
}
