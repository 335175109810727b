package client

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// TestMetrics: the sessions of a BIRD are counted and measured as those of our bird.
func TestMetrics(t *testing.T) {
	c, b := standin(t)
	_, err := b.Apply(t.Context(), sceneOfBIRD(), 1)
	require.NoError(t, err)
	m := NewMetrics(c.Peers).(*metrics)
	m.now = func() time.Time { return time.Date(2026, 11, 21, 13, 0, 0, 0, time.Local) }
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(m)
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP bird_sessions Number of BGP sessions by type of peer and state.
# TYPE bird_sessions gauge
bird_sessions{state="Down",type="global"} 1
bird_sessions{state="Active",type="mesh"} 1
bird_sessions{state="Connect",type="mesh"} 1
bird_sessions{state="Established",type="mesh"} 0
bird_sessions{state="Established",type="node"} 1
# HELP bird_sessions_accepted_prefixes Routes of all sessions, by type of peer.
# TYPE bird_sessions_accepted_prefixes gauge
bird_sessions_accepted_prefixes{type="global"} 0
bird_sessions_accepted_prefixes{type="mesh"} 0
bird_sessions_accepted_prefixes{type="node"} 2
# HELP bird_peer_up Of one session; as with Muslin's own speaker.
# TYPE bird_peer_up gauge
bird_peer_up{address="10.9.0.2",peer="Node_10_9_0_2",type="node"} 1
bird_peer_up{address="10.9.0.3",peer="Mesh_10_9_0_3",type="mesh"} 0
bird_peer_up{address="10.9.0.4",peer="Mesh_10_9_0_4",type="mesh"} 0
bird_peer_up{address="fd09::2",peer="Global_fd09__2",type="global"} 0
# HELP bird_peer_bfd_up Of one session; as with Muslin's own speaker.
# TYPE bird_peer_bfd_up gauge
bird_peer_bfd_up{address="10.9.0.2",peer="Node_10_9_0_2",type="node"} 1
`), "bird_sessions", "bird_sessions_accepted_prefixes", "bird_peer_up", "bird_peer_bfd_up"))
	count, err := testutil.GatherAndCount(r, "bird_peer_state", "bird_peer_uptime_seconds", "bird_peer_advertised_prefixes")
	require.NoError(t, err)
	require.Equal(t, 3*4, count)
}
