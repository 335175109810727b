package server_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/server"
	"github.com/muslin-net/muslin/bird/speaker"
)

// observed is a speaker with a mesh of a given size and one peer of a BGPPeer.
type observed struct {
	mesh   int
	counts atomic.Int32 // how often routes were counted
}

func (o *observed) Status() speaker.Status { return speaker.Status{Lost: 5, Prefixes: 7} }

func (o *observed) Sessions(string) []speaker.PeerState {
	var out []speaker.PeerState
	add := func(name string, kind policy.PeerType, n int, s speaker.Session) {
		p := speaker.PeerState{Session: s}
		if kind == policy.PeerGlobal {
			p.Path = "down, no answer"
		}
		p.Name, p.Type, p.Peer.Address = name, kind, netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
		out = append(out, p)
	}
	add("Global_tor", policy.PeerGlobal, 254, speaker.Session{State: speaker.Active, Flaps: 3})
	for i := range o.mesh {
		add(fmt.Sprint("Mesh_", i), policy.PeerMesh, i, speaker.Session{State: speaker.Established, Since: time.Now().Add(-time.Minute)})
	}
	return out
}

func (o *observed) Peers(string) ([]speaker.PeerState, error) {
	o.counts.Add(1)
	out := o.Sessions("")
	for i := range out {
		out[i].PeerCounters = speaker.PeerCounters{Received: 10, Accepted: 8, Advertised: 2}
	}
	return out, nil
}

// series gathers the metrics whose name begins with a prefix, without those of time.
func series(t *testing.T, c prometheus.Collector, prefix string) []string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	var out []string
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), prefix) || strings.Contains(f.GetName(), "uptime") {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			out = append(out, fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return out
}

func TestMetrics(t *testing.T) {
	o := &observed{mesh: 2}
	c := server.NewCollector(o, server.DetailAuto)
	problems, err := testutil.CollectAndLint(c)
	require.NoError(t, err)
	require.Empty(t, problems)
	require.Eventually(t, func() bool { return len(series(t, c, "bird_sessions_received")) > 0 }, time.Minute, 5*time.Millisecond)
	require.Equal(t, []string{
		"bird_sessions{state=Active,type=global} 1", "bird_sessions{state=Established,type=mesh} 2",
		"bird_sessions_accepted_prefixes{type=global} 8", "bird_sessions_accepted_prefixes{type=mesh} 16",
		"bird_sessions_advertised_prefixes{type=global} 2", "bird_sessions_advertised_prefixes{type=mesh} 4",
		"bird_sessions_lost_total{} 5",
		"bird_sessions_received_prefixes{type=global} 10", "bird_sessions_received_prefixes{type=mesh} 20",
	}, series(t, c, "bird_sessions"))
	var tor []string
	for _, s := range series(t, c, "bird_peer_") {
		if strings.Contains(s, "Global_tor") {
			tor = append(tor, strings.Replace(s, "{address=10.0.0.254,peer=Global_tor,type=global}", "", 1))
		}
	}
	require.Equal(t, []string{
		"bird_peer_accepted_prefixes 8", "bird_peer_advertised_prefixes 2", "bird_peer_bfd_up 0", "bird_peer_flaps_total 3", "bird_peer_received_prefixes 10",
		"bird_peer_state 3", "bird_peer_up 0",
	}, tor)
	for range 100 {
		series(t, c, "bird_")
	}
	require.EqualValues(t, 1, o.counts.Load(), "scrapes do not count routes")
}

func TestMetricsOfAMeshAreSums(t *testing.T) {
	ups := func(mesh int, detail server.Detail) int {
		return len(series(t, server.NewCollector(&observed{mesh: mesh}, detail), "bird_peer_up"))
	}
	require.Equal(t, 51, ups(50, server.DetailAuto))
	require.Equal(t, 1, ups(51, server.DetailAuto), "that of the BGPPeer")
	require.Equal(t, 52, ups(51, server.DetailIndividual))
	require.Equal(t, 0, ups(2, server.DetailAggregate))
	_, err := server.ParseDetail("all")
	require.ErrorContains(t, err, "give auto, individual or aggregate")
}
