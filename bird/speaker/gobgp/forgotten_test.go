package gobgp

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/speaker"
)

// TestForgotten: of the connections with a peer the one on which nothing was sent is broken, whichever end made it.
func TestForgotten(t *testing.T) {
	t.Parallel()
	own, peer := netip.MustParseAddr("127.0.91.1"), netip.MustParseAddr("127.0.91.2")
	listen := func(a netip.Addr) net.Listener {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	// connect returns our end and the peer's.
	connect := func(l net.Listener, from netip.Addr) (ours, theirs net.Conn) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 10 * time.Second}
		made, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		require.NoError(t, err)
		taken, err := l.Accept()
		require.NoError(t, err)
		for _, c := range []net.Conn{made, taken} {
			t.Cleanup(func() { _ = c.Close() })
		}
		if from == own {
			return made, taken
		}
		return taken, made
	}
	atUs, atPeer := listen(own), listen(peer)
	_, forgotten := connect(atUs, peer)
	_, forgottenToo := connect(atPeer, own)
	ours, alive := connect(atUs, peer)
	word := []byte{0xff}
	_, err := ours.Write(word)
	require.NoError(t, err)

	closeForgotten(peer, own)
	for _, c := range []net.Conn{forgotten, forgottenToo} {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, err := c.Read(make([]byte, 1))
		var late net.Error
		require.False(t, err == nil || errors.As(err, &late) && late.Timeout(), "the other end is told: %v", err)
	}
	_, err = alive.Write(word)
	require.NoError(t, err)
	require.NoError(t, ours.SetReadDeadline(time.Now().Add(20*time.Second)))
	n, err := ours.Read(make([]byte, 1))
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

// states keeps the states of sessions that it is told of.
type states struct {
	speaker.Events
	told []speaker.State
}

func (s *states) Session(_ netip.Addr, state speaker.State) { s.told = append(s.told, state) }

// TestLateEnd: the end of a session that was removed, told when another with the peer is up already, is not that one's end.
func TestLateEnd(t *testing.T) {
	a := netip.MustParseAddr("127.0.91.3")
	e := &Engine{peers: map[netip.Addr]speaker.Neighbor{a: {}}, states: map[netip.Addr]speaker.State{}, rests: map[netip.Addr]*rest{}}
	told := &states{}
	tell := func(localAS uint32, state api.PeerState_SessionState) {
		e.tellSession(told, &api.WatchEventResponse_PeerEvent{Peer: &api.Peer{State: &api.PeerState{
			NeighborAddress: a.String(), LocalAsn: localAS, SessionState: state,
		}}})
	}
	tell(64512, api.PeerState_ESTABLISHED)
	tell(0, api.PeerState_IDLE)
	require.Equal(t, []speaker.State{speaker.Established}, told.told)
	delete(e.peers, a)
	tell(0, api.PeerState_IDLE)
	require.Equal(t, []speaker.State{speaker.Established, speaker.Idle}, told.told, "it has no successor")
}
