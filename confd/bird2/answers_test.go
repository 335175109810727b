package bird2_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/confd/bird2"
)

// lines are those of an answer that a BIRD gave.
func lines(t testing.TB, name string) []string {
	t.Helper()
	body, err := os.ReadFile("testdata/answers/" + name)
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
}

func TestSessions(t *testing.T) {
	zone := time.FixedZone("there", 3600)
	read := bird2.Sessions{Zone: zone}
	for _, l := range lines(t, "protocols.txt") {
		read.Take(l)
	}
	at := func(clock string) time.Time {
		when, err := time.ParseInLocation(bird2.TimeFormat, "2026-11-21 "+clock, zone)
		require.NoError(t, err)
		return when
	}
	addr := netip.MustParseAddr
	require.Equal(t, []bird2.Session{
		{
			Name: "Node_10_9_0_2", Description: "BGPPeer(x)", Address: addr("10.9.0.2"), Source: addr("10.9.0.1"), ASNumber: 65001,
			LocalAS: 64512, State: "Established", Since: at("12:03:10.290"), Accepted: 2, Exported: 1,
		},
		{
			Name: "Mesh_10_9_0_3", Description: "Node(x)", Address: addr("10.9.0.3"), ASNumber: 64512, LocalAS: 64512, State: "Connect",
			Since: at("12:08:29.586"), LastError: "Socket: No route to host", Restarting: true,
		},
		{
			Name: "Mesh_10_9_0_4", Description: "Node(y)", Address: addr("10.9.0.4"), ASNumber: 64512, LocalAS: 64512, State: "Passive",
			Since: at("12:03:09.507"),
		},
		{
			Name: "Global_fd09__2", Description: "BGPPeer(z)", Address: addr("fd09::2"), ASNumber: 64512, LocalAS: 64512, State: "Down",
			Since: at("12:03:09.507"),
		},
	}, read.List)
}

func TestRoutes(t *testing.T) {
	var got []bird2.Route
	read := bird2.Routes{Yield: func(r bird2.Route) { got = append(got, r) }}
	for _, l := range lines(t, "routes.txt") {
		read.Take(l)
	}
	read.End()
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	require.Equal(t, []bird2.Route{
		{
			Prefix: prefix("10.60.0.0/16"), Protocol: "Node_10_9_0_2", Best: true, NextHop: addr("10.9.0.2"), Metric: 2147483547, Preference: 100,
			MED: 5, Origin: "igp", ASPath: []uint32{65001, 65002, 65003, 65004}, Communities: []string{"64512:100", "64512:7:8", "65001:7"},
		},
		{
			Prefix: prefix("10.60.0.0/16"), Protocol: "Mesh_10_9_0_3", NextHop: addr("10.9.0.3"), Metric: 1024, Preference: 2147482623,
			Origin: "incomplete",
		},
		{Prefix: prefix("10.50.0.0/16"), Protocol: "services4", Best: true},
		{Prefix: prefix("192.168.1.0/24"), Protocol: "kernel4", Best: true, Metric: 1024},
		{
			Prefix: prefix("fd60::/64"), Protocol: "Node_fd09__2", Best: true, NextHop: addr("fd09::2"), Metric: 2147483547, Preference: 100,
			Origin: "igp", ASPath: []uint32{65001},
		},
	}, got)
}

// FuzzAnswers checks that no answer breaks the readers, and that a route that is handed on has a prefix.
func FuzzAnswers(f *testing.F) {
	for _, name := range []string{"protocols.txt", "routes.txt"} {
		f.Add(strings.Join(lines(f, name), "\n"))
	}
	f.Fuzz(func(t *testing.T, text string) {
		sessions := bird2.Sessions{Zone: time.UTC}
		routes := bird2.Routes{Yield: func(r bird2.Route) { require.True(t, r.Prefix.IsValid()) }}
		for l := range strings.SplitSeq(text, "\n") {
			sessions.Take(l)
			routes.Take(l)
		}
		routes.End()
	})
}
