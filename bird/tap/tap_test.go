package tap

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
)

func bytesOf(t testing.TB, messages ...*bgp.BGPMessage) []byte {
	var out []byte
	for _, m := range messages {
		b, err := m.Serialize()
		require.NoError(t, err)
		out = append(out, b...)
	}
	return out
}

func badAS() *bgp.BGPMessage { return bgp.NewBGPNotificationMessage(2, 2, []byte{0, 1, 2, 3}) }

func TestNotificationsAreFound(t *testing.T) {
	found := []Heard{{Code: 2, Subcode: 2, Data: []byte{0, 1, 2, 3}}}
	all := bytesOf(t, bgp.NewBGPKeepAliveMessage(), badAS())
	require.Equal(t, found, notifications(all), "behind another message")
	require.Equal(t, found, notifications(append(slices.Clone(all), 1, 2, 3)))
	require.Empty(t, notifications(all[:len(all)-1]), "cut off")
	require.Empty(t, notifications(all[1:]), "not where a message begins")
	require.Empty(t, notifications(nil))
	broken := bytesOf(t, badAS())
	broken[3] = 0
	require.Empty(t, notifications(broken), "the marker is not one")
}

// FuzzNotifications has segments of any content: whatever comes, there is no panic, and what is found was there.
func FuzzNotifications(f *testing.F) {
	f.Add(bytesOf(f, bgp.NewBGPKeepAliveMessage(), badAS()))
	f.Add(bytesOf(f, badAS(), badAS()))
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, h := range notifications(payload) {
			require.LessOrEqual(t, len(h.Data), len(payload)-headerSize-2)
		}
	})
}

// The filter lets through what may have a NOTIFICATION.
func TestFilter(t *testing.T) {
	tcp := make([]byte, 24)
	tcp[12] = 6 << 4 // a header of six words
	ip := append([]byte{0x46}, make([]byte, 23)...)
	for _, v4 := range []bool{true, false} {
		vm, err := bpf.NewVM(filter(v4))
		require.NoError(t, err)
		takes := func(payload []byte) bool {
			packet := append(slices.Clone(tcp), payload...)
			if v4 {
				packet = append(slices.Clone(ip), packet...)
			}
			n, err := vm.Run(packet)
			require.NoError(t, err)
			return n > 0
		}
		require.True(t, takes(bytesOf(t, badAS())))
		require.True(t, takes(bytesOf(t, bgp.NewBGPKeepAliveMessage(), badAS())), "behind another message")
		require.False(t, takes(bytesOf(t, bgp.NewBGPKeepAliveMessage())), "nothing else")
		require.False(t, takes(bytesOf(t, bgp.NewBGPUpdateMessage(nil, nil, nil))))
		require.False(t, takes([]byte("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")))
		require.False(t, takes(nil))
	}
}

// Whoever may open raw sockets hears what comes in over loopback, in both families; others are told what they lack.
func TestTap(t *testing.T) {
	tap, err := Open()
	if err != nil {
		require.ErrorContains(t, err, "NET_RAW")
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard, done := make(chan Heard, 16), make(chan error, 1)
	go func() { done <- tap.Run(ctx, func(h Heard) { heard <- h }) }()
	for _, address := range []string{"127.0.85.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
		require.NoError(t, err)
		defer l.Close()
		conn, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write(bytesOf(t, badAS()))
		require.NoError(t, err)
		select {
		case h := <-heard:
			require.Equal(t, [2]uint8{2, 2}, [2]uint8{h.Code, h.Subcode})
			require.Equal(t, []byte{0, 1, 2, 3}, h.Data)
			if h.To.IsValid() {
				require.Equal(t, address, h.To.String())
			}
		case <-time.After(time.Minute):
			require.Fail(t, "not heard", address)
		}
	}
	cancel()
	require.NoError(t, <-done)
}
