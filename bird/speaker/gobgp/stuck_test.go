package gobgp_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/bird/speaker/gobgp"
)

// TestStuckPeer loses a peer that reads nothing, while gobgp has more for it than buffers hold, and has not yet judged all that
// it sent. The engine must go on.
func TestStuckPeer(t *testing.T) {
	own, other := loopback(92, 1), loopback(92, 2)
	s := start(t)
	announce(s)
	c := config(own, 64512, rawSession(own, other, 65001))
	many := policy.Origination{}
	for i := range uint32(60) {
		many.Communities = append(many.Communities, policy.Community{Parts: [3]uint32{64512, i}})
	}
	apply(t, s, c)

	p := &rawPeer{t: t, as: 65001}
	eventually(t, "the connection is taken", func() bool {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: other.AsSlice()}, Control: smallBuffer}
		conn, err := d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(own, testPort).String())
		if err != nil {
			return false
		}
		p.conn = conn
		if p.establish(other, nil) == nil {
			return true
		}
		conn.Close()
		return false
	})
	defer p.conn.Close()
	eventually(t, "the session is up", func() bool { return s.States()[other] == speaker.Established })

	sockets := gobgp.Connections(other, own)
	require.NotEmpty(t, sockets)
	require.NoError(t, unix.SetsockoptInt(sockets[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10))
	waiting := func() int {
		n, err := unix.IoctlGetInt(sockets[0], unix.SIOCOUTQ)
		require.NoError(t, err)
		return n
	}
	for i := range 500 { // each with communities of its own, so that they are not packed
		o := many
		o.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), 32)
		o.Communities = append(slices.Clone(many.Communities), policy.Community{Parts: [3]uint32{1, uint32(i)}})
		c.Originate = append(c.Originate, o)
	}
	c.Generation = 10
	apply(t, s, c)
	eventually(t, "the connection is full", func() bool {
		before := waiting()
		<-time.After(50 * time.Millisecond) // what is full does not change
		return before > 0 && waiting() == before
	})
	closeAll(sockets)

	attributes := slices.Concat(goodOrigin, asPath(65001), goodNextHop)
	for i := range 5000 {
		p.update(attributes, onWire(byte(i>>8), byte(i)))
	}
	s.PeerLost(other, speaker.ByBFD, "BFD: control detection time expired")
	answered := make(chan error, 1)
	go func() {
		for s.States()[other] != speaker.Idle {
			<-time.After(time.Millisecond)
		}
		_, err := s.Peers("")
		answered <- err
	}()
	select {
	case err := <-answered:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		t.Fatal("gobgp's loop hangs")
	}
	eventually(t, "the connection is gone", func() bool {
		left := gobgp.Connections(other, own)
		closeAll(left)
		return len(left) == 0
	})
}

// smallBuffer keeps small what a peer that reads nothing takes nevertheless.
func smallBuffer(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10) })
	return errors.Join(err, set)
}

func closeAll(list []int) {
	for _, fd := range list {
		unix.Close(fd)
	}
}
