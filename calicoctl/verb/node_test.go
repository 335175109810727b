package verb

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	birdclient "github.com/muslin-net/muslin/bird/client"
)

// What operators of the reference cluster see, byte for byte.
func TestNodeStatusIsCalicos(t *testing.T) {
	want, err := os.ReadFile("testdata/node-status.txt")
	require.NoError(t, err)
	now := time.Date(2026, 11, 20, 23, 0, 0, 0, time.Local)
	var peers []birdclient.Peer
	for _, a := range []string{"10.30.0.206", "10.30.0.56", "10.30.1.66"} {
		peers = append(peers, birdclient.Peer{
			Address: netip.MustParseAddr(a), Type: birdclient.Mesh, State: birdclient.Established,
			Since: time.Date(2026, 11, 20, 18, 42, 27, 0, time.Local),
		})
	}
	var got strings.Builder
	printStatus(&got, birdclient.Status{Peers: peers}, nil, false, now)
	require.Equal(t, string(want), got.String())
}

func TestNodeStatusOfTroubledSessions(t *testing.T) {
	now := time.Date(2026, 11, 20, 23, 0, 0, 0, time.Local)
	var got strings.Builder
	printStatus(&got, birdclient.Status{Peers: []birdclient.Peer{
		{Address: netip.MustParseAddr("fd00:30::206"), Type: birdclient.Mesh, State: birdclient.Established, Since: now.AddDate(0, 0, -1)},
		{Address: netip.MustParseAddr("fd00:30::1"), Type: birdclient.Global, State: birdclient.Active, LastError: "Socket: No route to host"},
	}}, nil, false, now)
	require.Equal(t, `Calico process is running.

IPv4 BGP status
No IPv4 peers found.

IPv6 BGP status
+--------------+-------------------+-------+------------+---------------------------------+
| PEER ADDRESS |     PEER TYPE     | STATE |   SINCE    |              INFO               |
+--------------+-------------------+-------+------------+---------------------------------+
| fd00:30::206 | node-to-node mesh | up    | 2026-11-19 | Established                     |
| fd00:30::1   | global            | start |            | Active Socket: No route to host |
+--------------+-------------------+-------+------------+---------------------------------+
`, got.String())
}

func TestNodeStatusWithoutDaemons(t *testing.T) {
	var out, errs strings.Builder
	socket := filepath.Join(t.TempDir(), "nobody.sock")
	begin := time.Now()
	code := Run(t.Context(), "v1", []string{"node", "status", "--felix-socket", socket, "--bird-socket", socket}, strings.NewReader(""), &out, &errs)
	require.Equal(t, 1, code)
	require.Contains(t, errs.String(), "Calico process is not running: ")
	require.Contains(t, errs.String(), socket)
	require.Empty(t, out.String())
	require.Less(t, time.Since(begin), 30*time.Second)
}
