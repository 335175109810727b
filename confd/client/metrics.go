package client

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	bird "github.com/muslin-net/muslin/bird/client"
)

const (
	// scrapeTimeout is how long a BIRD may take to answer.
	scrapeTimeout = 5 * time.Second
	// smallMesh is how many sessions of the mesh have series of their own: as with our bird.
	smallMesh = 50
)

// NewMetrics returns what a BIRD 2 tells of its sessions, by the names that our bird's metrics have. BIRD is asked at each scrape,
// by peers, which is cheap: it keeps counts.
func NewMetrics(peers func(ctx context.Context, peer string) (bird.Status, error)) prometheus.Collector {
	return &metrics{
		peers: peers, now: time.Now,
		sessions: prometheus.NewDesc("bird_sessions", "Number of BGP sessions by type of peer and state.", []string{"type", "state"}, nil),
	}
}

type metrics struct {
	peers    func(context.Context, string) (bird.Status, error)
	now      func() time.Time
	sessions *prometheus.Desc
}

// Describe says that series come and go with sessions.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect is for Prometheus. A BIRD that does not answer has no series.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	s, err := m.peers(ctx, "")
	if err != nil {
		return
	}
	type group struct{ kind, state string }
	states, mesh := map[group]int{{typeLabel(bird.Mesh), bird.Established.String()}: 0}, 0
	sums := map[string]map[string]uint64{}
	for _, p := range s.Peers {
		if p.ShadowedBy != "" {
			continue
		}
		label := typeLabel(p.Type)
		states[group{label, p.State.String()}]++
		if sums[label] == nil {
			sums[label] = map[string]uint64{}
		}
		for name, n := range routes(p) {
			sums[label][name] += n
		}
		if p.Type == bird.Mesh {
			mesh++
		}
	}
	for g, n := range states {
		out <- prometheus.MustNewConstMetric(m.sessions, prometheus.GaugeValue, float64(n), g.kind, g.state)
	}
	for label, byName := range sums {
		for name, n := range byName {
			d := prometheus.NewDesc("bird_sessions_"+name, "Routes of all sessions, by type of peer.", []string{"type"}, nil)
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), label)
		}
	}
	for _, p := range s.Peers {
		if p.ShadowedBy == "" && (p.Type != bird.Mesh || mesh <= smallMesh) {
			m.one(p, out)
		}
	}
}

// one reports a single session.
func (m *metrics) one(p bird.Peer, out chan<- prometheus.Metric) {
	values := map[string]float64{"up": 0, "state": float64(p.State), "uptime_seconds": p.Uptime(m.now()).Seconds()}
	if p.State == bird.Established {
		values["up"] = 1
	}
	if p.BFD != "" {
		values["bfd_up"] = 0
		if strings.HasPrefix(p.BFD, "up") {
			values["bfd_up"] = 1
		}
	}
	for name, n := range routes(p) {
		values[name] = float64(n)
	}
	for name, v := range values {
		d := prometheus.NewDesc("bird_peer_"+name, "Of one session; as with Muslin's own speaker.", []string{"peer", "address", "type"}, nil)
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, p.Name, p.Address.String(), typeLabel(p.Type))
	}
}

func routes(p bird.Peer) map[string]uint64 {
	return map[string]uint64{"received_prefixes": p.Received, "accepted_prefixes": p.Accepted, "advertised_prefixes": p.Advertised}
}

// typeLabel is the type of a peer as metrics call it.
func typeLabel(t bird.PeerType) string {
	return map[bird.PeerType]string{bird.Mesh: "mesh", bird.Global: "global", bird.NodeSpecific: "node", bird.LocalWorkload: "local-workload"}[t]
}
