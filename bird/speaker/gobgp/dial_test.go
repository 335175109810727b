package gobgp

import (
	"log/slog"
	"net"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"github.com/stretchr/testify/require"
)

// TestGobgpTakesConnections fails when a new version of gobgp keeps its channel of connections elsewhere: then gobgp would dial
// itself again, 1 to 2 s late.
func TestGobgpTakesConnections(t *testing.T) {
	s := server.NewBgpServer(server.LoggerOption(&logger{log: slog.New(slog.DiscardHandler)}))
	go s.Serve()
	require.NoError(t, s.StartBgp(t.Context(), &api.StartBgpRequest{Global: &api.Global{
		Asn: 64512, RouterId: "127.0.90.1", ListenPort: 17180, ListenAddresses: []string{"127.0.90.1"},
	}}))
	require.NotNil(t, accepted(s))
	require.NoError(t, s.StopBgp(t.Context(), &api.StopBgpRequest{}))
}

// TestSpeaks tells apart peers that speak, that say nothing, and that close.
func TestSpeaks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	for name, c := range map[string]struct {
		peer func(net.Conn)
		want bool
	}{
		"speaks":       {func(c net.Conn) { _, _ = c.Write([]byte{0xff}) }, true},
		"says nothing": {func(net.Conn) {}, true},
		"closes":       {func(c net.Conn) { _ = c.Close() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := net.Dial("tcp", l.Addr().String())
			require.NoError(t, err)
			defer client.Close()
			other, err := l.Accept()
			require.NoError(t, err)
			defer other.Close()
			c.peer(other)
			require.Equal(t, c.want, speaks(t.Context(), client.(*net.TCPConn), openPatience))
			if name == "speaks" {
				b := make([]byte, 1)
				n, err := client.Read(b)
				require.NoError(t, err)
				require.Equal(t, 1, n, "nothing was taken")
			}
		})
	}
}
