package gobgp

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/wire"
)

// from is a connection on which this was said.
type from struct {
	net.Conn
	said io.Reader
}

func (f from) Read(to []byte) (int, error) { return f.said.Read(to) }

func written(t *testing.T, m *bgp.BGPMessage) []byte {
	t.Helper()
	b, err := m.Serialize()
	require.NoError(t, err)
	return b
}

func withdrawal(n byte) *bgp.BGPMessage {
	return bgp.NewBGPUpdateMessage([]*bgp.IPAddrPrefix{bgp.NewIPAddrPrefix(24, netip.AddrFrom4([4]byte{20, 0, n, 0}).String())}, nil, nil)
}

// TestGobgpLendsItsConnections fails when a new version of gobgp keeps them elsewhere.
func TestGobgpLendsItsConnections(t *testing.T) {
	require.True(t, lends(server.NewBgpServer(server.LoggerOption(&logger{log: slog.New(slog.DiscardHandler)}))))
}

// TestConnectionReads has messages come in pieces of any length: sound ones are read as they came, others mended, and what is
// no BGP at all is passed on.
func TestConnectionReads(t *testing.T) {
	const header = wire.HeaderLen
	prefix := []byte{24, 10, 0, 1}
	broken := slices.Concat(bytes.Repeat([]byte{255}, 16), []byte{0, header + 11, 2}, []byte{0, 0, 0, 3, 0xc0, 8, 200}, prefix)
	sound := slices.Concat(written(t, withdrawal(1)), written(t, bgp.NewBGPKeepAliveMessage()))
	mended := slices.Concat(bytes.Repeat([]byte{255}, 16), []byte{0, header + 8, 2, 0, 4}, prefix, []byte{0, 0})
	noise := bytes.Repeat([]byte("HTTP/1.1 400 Bad Request\r\n"), 1000)
	for name, pieces := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "bytes": iotest.OneByteReader,
	} {
		t.Run(name, func(t *testing.T) {
			begun, count := 0, 0
			c := newConnection(from{said: pieces(bytes.NewReader(slices.Concat(sound, broken, sound, noise)))}, wire.NewPacker(false, false), func() { begun++ }, func() { count++ })
			got, err := io.ReadAll(c)
			require.NoError(t, err)
			require.Equal(t, slices.Concat(sound, mended, sound, noise), got)
			require.Equal(t, []int{1, 1}, []int{begun, count})
		})
	}
	c := newConnection(from{said: bytes.NewReader(sound[:len(sound)-1])}, wire.NewPacker(false, false), nil, nil)
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, written(t, withdrawal(1)), got, "a message that does not come whole does not come")
}

// TestConnectionWrites has one UPDATE go out at once, and what is said alike in the moment after it in one message, before
// anything else is said.
func TestConnectionWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end, peer := net.Pipe()
		c := newConnection(end, wire.NewPacker(false, false), nil, nil)
		heard := make(chan *bgp.BGPMessage, 100)
		go func() {
			defer close(heard)
			for {
				head := make([]byte, wire.HeaderLen)
				if _, err := io.ReadFull(peer, head); err != nil {
					return
				}
				body := make([]byte, int(binary.BigEndian.Uint16(head[16:]))-len(head))
				_, _ = io.ReadFull(peer, body)
				m, _ := bgp.ParseBGPMessage(append(head, body...))
				heard <- m
			}
		}()
		say := func(m *bgp.BGPMessage) {
			b := written(t, m)
			n, err := c.Write(b)
			require.NoError(t, err)
			require.Len(t, b, n)
		}
		for n := range byte(100) {
			say(withdrawal(n))
		}
		synctest.Wait()
		require.Len(t, (<-heard).Body.(*bgp.BGPUpdate).WithdrawnRoutes, 1)
		require.Empty(t, heard)
		time.Sleep(linger)
		require.Len(t, (<-heard).Body.(*bgp.BGPUpdate).WithdrawnRoutes, 99)
		say(withdrawal(1))
		say(bgp.NewBGPKeepAliveMessage())
		synctest.Wait()
		require.Len(t, (<-heard).Body.(*bgp.BGPUpdate).WithdrawnRoutes, 1, "it does not wait for more")
		require.Equal(t, uint8(bgp.BGP_MSG_KEEPALIVE), (<-heard).Header.Type)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, heard, "each is said once")

		// Nobody writes any more: what cannot be sent is told by the connection's end.
		say(withdrawal(2))
		say(withdrawal(3))
		synctest.Wait()
		<-heard
		require.NoError(t, end.SetWriteDeadline(time.Now().Add(-time.Second)))
		time.Sleep(linger)
		_, ended := <-heard
		require.False(t, ended)
		_, err := c.Write(written(t, withdrawal(3)))
		require.Error(t, err)
	})
}
