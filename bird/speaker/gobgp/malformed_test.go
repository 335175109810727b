package gobgp_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// rawPeer is the other end of a session, which sends what it is told, however wrong.
type rawPeer struct {
	t    testing.TB
	conn net.Conn
	as   uint32
	gone chan string // why the session ended
}

// dialRaw opens a session with the speaker at the address, and waits until it is up.
func dialRaw(t testing.TB, from, to netip.Addr, as uint32, more ...bgp.ParameterCapabilityInterface) *rawPeer {
	t.Helper()
	p := dialMute(t, from, to, as, more...)
	go p.listen()
	return p
}

// dialMute leaves it to the caller to read what the speaker says.
func dialMute(t testing.TB, from, to netip.Addr, as uint32, more ...bgp.ParameterCapabilityInterface) *rawPeer {
	t.Helper()
	return dialUntil(t, from, to, as, func(p *rawPeer) error { return p.establish(from, more) })
}

// dialUntil connects again and again until the talk on a connection ends well.
func dialUntil(t testing.TB, from, to netip.Addr, as uint32, talk func(*rawPeer) error) *rawPeer {
	t.Helper()
	p := &rawPeer{t: t, as: as, gone: make(chan string, 1)}
	deadline := time.Now().Add(time.Minute)
	for {
		var err error
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: time.Second}
		p.conn, err = d.DialContext(context.Background(), "tcp", netip.AddrPortFrom(to, testPort).String())
		if err == nil {
			if err = talk(p); err == nil {
				break
			}
			p.conn.Close()
		}
		require.True(t, time.Now().Before(deadline), "the session does not come up: %v", err)
		<-time.After(50 * time.Millisecond) // between two attempts
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

// establish shakes hands.
func (p *rawPeer) establish(id netip.Addr, more []bgp.ParameterCapabilityInterface) error {
	if err := p.open(id, more); err != nil {
		return err
	}
	return p.say(bgp.NewBGPKeepAliveMessage())
}

// open says OPEN, and hears one.
func (p *rawPeer) open(id netip.Addr, more []bgp.ParameterCapabilityInterface) error {
	family := bgp.RF_IPv4_UC
	if id.Is6() {
		family, id = bgp.RF_IPv6_UC, netip.MustParseAddr("9.9.9.9")
	}
	return p.say(bgp.NewBGPOpenMessage(uint16(p.as), 90, id.String(), []bgp.OptionParameterInterface{
		bgp.NewOptionParameterCapability(append([]bgp.ParameterCapabilityInterface{bgp.NewCapMultiProtocol(family), bgp.NewCapFourOctetASNumber(p.as)}, more...)),
	}))
}

// say sends a message, and hears one.
func (p *rawPeer) say(m *bgp.BGPMessage) error {
	data, err := m.Serialize()
	if err == nil {
		_, err = p.conn.Write(data)
	}
	if err == nil {
		_, _, err = p.read()
	}
	return err
}

func (p *rawPeer) read() (kind uint8, body []byte, err error) {
	head := make([]byte, 19)
	if _, err := io.ReadFull(p.conn, head); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.BigEndian.Uint16(head[16:])-19)
	_, err = io.ReadFull(p.conn, body)
	return head[18], body, err
}

// listen tells how the session ends.
func (p *rawPeer) listen() {
	for {
		kind, body, err := p.read()
		switch {
		case err != nil:
			p.gone <- err.Error()
			return
		case kind == bgp.BGP_MSG_NOTIFICATION:
			p.gone <- bgp.NewNotificationErrorCode(body[0], body[1]).String()
			return
		}
	}
}

// update sends an UPDATE of these attributes and prefixes, which are on the wire already.
func (p *rawPeer) update(attributes, prefixes []byte) {
	p.t.Helper()
	m := append(slices.Repeat([]byte{255}, 16), 0, 0, bgp.BGP_MSG_UPDATE, 0, 0)
	m = binary.BigEndian.AppendUint16(m, uint16(len(attributes)))
	m = append(append(m, attributes...), prefixes...)
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	_, err := p.conn.Write(m)
	require.NoError(p.t, err)
}

// Flags of attributes (RFC 4271 section 4.3).
const (
	wellKnown     = 0x40
	optional      = 0x80
	transitive    = 0xc0
	extended      = 0x10
	unknownNumber = 99 // of an attribute that nobody knows
)

// attribute is one on the wire.
func attribute(flags, kind byte, value ...byte) []byte {
	return append([]byte{flags, kind, byte(len(value))}, value...)
}

// Attributes that are as they should be.
var (
	goodOrigin  = attribute(wellKnown, 1, 0)
	goodNextHop = attribute(wellKnown, 3, 10, 1, 1, 1)
	preference  = attribute(wellKnown, 5, 0, 0, 0, 100)
)

func asPath(as uint32) []byte {
	return attribute(wellKnown, 2, append([]byte{2, 1}, binary.BigEndian.AppendUint32(nil, as)...)...)
}

// onWire is 20.kind.n.0/24.
func onWire(kind, n byte) []byte { return []byte{24, 20, kind, n} }

func offWire(kind, n byte) string {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{20, kind, n, 0}), 24).String()
}

// testMalformed sends updates with each kind of mistake that RFC 7606 speaks of. What is wrong with an attribute costs the
// route, or the attribute, never the session or another route. What makes a message unreadable costs the session, which comes back.
func testMalformed(t *testing.T, speakers []*speaker.Speaker) {
	s, own := speakers[0], loopback(90, 1)
	peers := map[bool]netip.Addr{false: loopback(90, 2), true: loopback(78, 3)} // by whether they are of our own AS
	apply(t, s, config(own, 64512, rawSession(own, peers[false], 65001), rawSession(own, peers[true], 64512)))
	raw := map[bool]*rawPeer{false: dialRaw(t, peers[false], own, 65001), true: dialRaw(t, peers[true], own, 64512)}
	eventually(t, "sessions are up", func() bool {
		return s.States()[peers[false]] == speaker.Established && s.States()[peers[true]] == speaker.Established
	})
	good := func(internal bool) []byte {
		if internal {
			return slices.Concat(goodOrigin, attribute(wellKnown, 2), goodNextHop, preference)
		}
		return slices.Concat(goodOrigin, asPath(65001), goodNextHop)
	}
	replaced := func(number int, with []byte) []byte {
		parts := [][]byte{goodOrigin, asPath(65001), goodNextHop}
		parts[number-1] = with
		return slices.Concat(parts...)
	}
	and := func(more []byte) []byte { return append(good(false), more...) }
	inside := func(more []byte) []byte { return append(good(true), more...) }

	const keeps = true // the route, without what is broken
	for i, wrong := range []struct {
		name       string
		internal   bool // said by a peer of our own AS
		attributes []byte
		keeps      bool
	}{
		{"origin of an unknown value", false, replaced(1, attribute(wellKnown, 1, 3)), false},
		{"origin of two bytes", false, replaced(1, attribute(wellKnown, 1, 0, 0)), false},
		{"origin without a byte", false, replaced(1, attribute(wellKnown, 1)), false},
		{"origin with the flags of an optional attribute", false, replaced(1, attribute(transitive, 1, 0)), false},
		{"no origin", false, replaced(1, nil), false},
		{"AS path with a segment that is longer than the attribute", false, replaced(2, attribute(wellKnown, 2, 2, 9, 0, 0, 253, 233)), false},
		{"AS path with an empty segment", false, replaced(2, attribute(wellKnown, 2, 2, 0)), false},
		{"AS path with a segment of an unknown type", false, replaced(2, attribute(wellKnown, 2, 9, 1, 0, 0, 253, 233)), false},
		{"AS path of one byte", false, replaced(2, attribute(wellKnown, 2, 2)), false},
		{"AS path with a confederation's segment", false, replaced(2, attribute(wellKnown, 2, 3, 1, 0, 0, 253, 233)), false},
		{"no AS path", false, replaced(2, nil), false},
		{"next hop of three bytes", false, replaced(3, attribute(wellKnown, 3, 10, 1, 1)), false},
		{"next hop without a byte", false, replaced(3, attribute(wellKnown, 3)), false},
		{"next hop that is no host", false, replaced(3, attribute(wellKnown, 3, 224, 0, 0, 1)), false},
		{"next hop zero", false, replaced(3, attribute(wellKnown, 3, 0, 0, 0, 0)), false},
		{"no next hop", false, replaced(3, nil), false},
		{"discriminator of three bytes", false, and(attribute(optional, 4, 0, 0, 1)), false},
		{"discriminator twice", false, and(append(attribute(optional, 4, 0, 0, 0, 1), attribute(optional, 4, 0, 0, 0, 2)...)), keeps},
		{"local preference of three bytes", true, slices.Concat(goodOrigin, attribute(wellKnown, 2), goodNextHop, attribute(wellKnown, 5, 0, 0, 100)), false},
		{"atomic aggregate with a byte", false, and(attribute(wellKnown, 6, 1)), keeps},
		{"aggregator of five bytes", false, and(attribute(transitive, 7, 0, 0, 1, 1, 1)), keeps},
		{"communities of five bytes", false, and(attribute(transitive, 8, 0, 1, 0, 1, 0)), false},
		{"originator of three bytes", true, inside(attribute(optional, 9, 1, 1, 1)), false},
		{"cluster list of five bytes", true, inside(attribute(optional, 10, 1, 1, 1, 1, 1)), false},
		{"extended communities of seven bytes", false, and(attribute(transitive, 16, 0, 2, 0, 1, 0, 0, 0)), false},
		{"large communities of eleven bytes", false, and(attribute(transitive, 32, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)), false},
		{"unknown optional attribute", false, and(attribute(transitive, unknownNumber, 1, 2, 3)), keeps},
		{"attribute that is longer than the message", false, and([]byte{transitive, 8, 200, 0, 1}), false},
		{"attribute that reaches into the prefixes", false, and([]byte{transitive, 8, 3, 0, 1}), false},
		{"attribute whose length reaches into the prefixes", false, and([]byte{transitive | extended, 8, 0}), false},
		{"attribute of two bytes", false, and([]byte{transitive, 8}), false},
	} {
		t.Run(wrong.name, func(t *testing.T) {
			p, n := raw[wrong.internal], byte(i)
			bystander, marker := offWire(1, n), offWire(2, n)
			for kind := range byte(2) {
				p.update(good(wrong.internal), onWire(kind, n))
			}
			eventually(t, "both routes are there", func() bool { b := best(s); return b[offWire(0, n)].Origin != "" && b[bystander].Origin != "" })
			since := sinceOf(t, s, peers[wrong.internal])

			p.update(wrong.attributes, onWire(0, n))
			p.update(good(wrong.internal), onWire(2, n))
			ended := ""
			eventually(t, "what follows is there", func() bool {
				select {
				case ended = <-p.gone:
					return true
				default:
					return best(s)[marker].Origin != ""
				}
			})
			require.Empty(t, ended, "the session stays up")
			require.Equal(t, since, sinceOf(t, s, peers[wrong.internal]))
			require.NotEmpty(t, best(s)[bystander].Origin, "another route stays")
			_, kept := best(s)[offWire(0, n)]
			require.Equal(t, wrong.keeps, kept)
		})
	}

	// The rest costs the session, by RFC 4271 section 6.3 or, the last, RFC 7606 section 5.2. That of others stays up, and routes
	// come again.
	p, outer := raw[false], t
	others := sinceOf(t, s, peers[true])
	for i, wrong := range []struct {
		name                 string
		attributes, prefixes []byte
	}{
		{"well-known attribute that nobody knows", and(attribute(wellKnown, unknownNumber, 1)), onWire(0, 200)},
		{"prefix of 33 bits", good(false), []byte{33, 20, 9, 9, 9, 128}},
		{"prefix that is cut", good(false), []byte{24, 20}},
		{"attribute that is longer than a message without a route", and([]byte{transitive, 8, 8, 0, 1, 0, 1}), nil},
	} {
		t.Run(wrong.name, func(t *testing.T) {
			p.update(wrong.attributes, wrong.prefixes)
			select {
			case why := <-p.gone:
				t.Log(why)
			case <-time.After(time.Minute):
				require.Fail(t, "the session lives on")
			}
			p.conn.Close()
			p = dialRaw(outer, peers[false], own, 65001)
			p.update(good(false), onWire(3, byte(i)))
			eventually(t, "routes come again", func() bool { return best(s)[offWire(3, byte(i))].Origin != "" })
			require.Equal(t, others, sinceOf(t, s, peers[true]), "the other session stays up")
		})
	}
}

func rawSession(own, other netip.Addr, as uint32) policy.Peer {
	p := peer(own, other, as, true)
	p.Name += "_raw"
	return p
}

func sinceOf(t *testing.T, s *speaker.Speaker, address netip.Addr) time.Time {
	t.Helper()
	list, err := s.Peers(address.String())
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, speaker.Established, list[0].State)
	return list[0].Since
}
