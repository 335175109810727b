package server

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// Detail says which sessions have series of their own. Series for each session of a mesh grow with the square of the cluster;
// sums by type and state are there in any case.
type Detail string

// The details.
const (
	DetailAuto       Detail = "auto"       // those of BGPPeers, and those of the mesh up to smallMesh
	DetailIndividual Detail = "individual" // all
	DetailAggregate  Detail = "aggregate"  // none
)

// smallMesh is how many sessions of the mesh have series of their own with DetailAuto.
const smallMesh = 50

// ParseDetail reads a setting.
func ParseDetail(s string) (Detail, error) {
	switch d := Detail(s); d {
	case DetailAuto, DetailIndividual, DetailAggregate:
		return d, nil
	}
	return "", fmt.Errorf("%q is no detail of metrics; give auto, individual or aggregate", s)
}

// Counting routes costs a walk over all of them, in which the engine does nothing else. So counts are taken beside scrapes, at
// most every sampleEvery, and for at most one part in sampleShare of the time.
const (
	sampleEvery = 15 * time.Second
	sampleShare = 200
)

// Observed is the speaker as metrics see it.
type Observed interface {
	Status() speaker.Status
	// Sessions is cheap, Peers is not: it counts routes.
	Sessions(filter string) []speaker.PeerState
	Peers(filter string) ([]speaker.PeerState, error)
}

// collector reports sums over sessions, and single sessions as far as the detail says.
type collector struct {
	bird   Observed
	detail Detail
	now    func() time.Time
	spawn  func(func())

	mu       sync.Mutex // guards the following
	counted  map[string]speaker.PeerCounters
	next     time.Time // when counts may be taken again
	counting bool

	sessions, lost, prefixes, announced, generation, loaded, drain *prometheus.Desc
	of                                                             map[string]*prometheus.Desc // by name
}

// NewCollector returns the metrics of a speaker.
func NewCollector(bird Observed, detail Detail) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("bird_"+name, help, labels, nil)
	}
	c := &collector{
		bird: bird, detail: detail, now: time.Now, spawn: func(f func()) { go f() },
		sessions:   desc("sessions", "Number of BGP sessions by type of peer and state.", "type", "state"),
		lost:       desc("sessions_lost_total", "How often a session was lost after it had been up."),
		prefixes:   desc("prefixes", "Number of prefixes with a best path that was learned."),
		announced:  desc("announced_routes", "Number of this node's routes that are announced."),
		generation: desc("config_generation", "Generation of the running configuration."),
		loaded:     desc("config_timestamp_seconds", "When the configuration last changed."),
		drain:      desc("drain", "0 in service, 1 while routes are announced as about to go, 2 when nothing is announced."),
		of:         map[string]*prometheus.Desc{},
	}
	for name, help := range map[string]string{
		"received_prefixes": "Routes received", "accepted_prefixes": "Routes received and accepted", "advertised_prefixes": "Prefixes advertised",
	} {
		c.of[name] = desc("sessions_"+name, help+", by type of peer. Counted beside scrapes, at most every 15 s.", "type")
		c.of["peer_"+name] = desc("peer_"+name, help+". Counted beside scrapes, at most every 15 s.", "peer", "address", "type")
	}
	for name, help := range map[string]string{
		"up": "1 if the session is established.", "state": "State of RFC 4271: 1 Idle, 2 Connect, 3 Active, 4 OpenSent, 5 OpenConfirm, 6 Established; 7 down.",
		"flaps_total": "How often the session was lost after it had been up.", "uptime_seconds": "How long the session has been established; 0 if it is not.",
		"bfd_up": "1 if BFD says that the peer is there, 0 if not; absent without BFD.",
	} {
		c.of["peer_"+name] = desc("peer_"+name, help, "peer", "address", "type")
	}
	return c
}

// Describe is for Prometheus.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.sessions, c.lost, c.prefixes, c.announced, c.generation, c.loaded, c.drain} {
		out <- d
	}
	for _, d := range c.of {
		out <- d
	}
}

// typeLabel is the type of a peer as metrics call it.
func typeLabel(t policy.PeerType) string {
	return map[policy.PeerType]string{
		policy.PeerMesh: "mesh", policy.PeerGlobal: "global", policy.PeerNode: "node", policy.PeerLocalWorkload: "local-workload",
	}[t]
}

// Collect is for Prometheus.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st, counted := c.bird.Status(), c.counts()
	type group struct{ peer, state string }
	states := map[group]int{{"mesh", speaker.Established.String()}: 0}
	sums, mesh := map[string]map[string]uint64{}, 0
	var single []speaker.PeerState
	for _, p := range c.bird.Sessions("") {
		if p.ShadowedBy != "" {
			continue
		}
		if p.Type == policy.PeerMesh {
			mesh++
		}
		single = append(single, p)
		label := typeLabel(p.Type)
		states[group{label, p.State.String()}]++
		if sums[label] == nil {
			sums[label] = map[string]uint64{}
		}
		for name, n := range numbers(counted[p.Name]) {
			sums[label][name] += n
		}
	}
	for g, n := range states {
		gauge(c.sessions, float64(n), g.peer, g.state)
	}
	for label, byName := range sums {
		for name, n := range byName {
			gauge(c.of[name], float64(n), label)
		}
	}
	for i := range single {
		if p := &single[i]; c.detail == DetailIndividual || c.detail == DetailAuto && (p.Type != policy.PeerMesh || mesh <= smallMesh) {
			c.one(out, p, counted)
		}
	}
	out <- prometheus.MustNewConstMetric(c.lost, prometheus.CounterValue, float64(st.Lost))
	gauge(c.prefixes, float64(st.Prefixes))
	gauge(c.announced, float64(st.Announced))
	gauge(c.generation, float64(st.Generation))
	gauge(c.drain, float64(st.Drain))
	if !st.Configured.IsZero() {
		gauge(c.loaded, float64(st.Configured.Unix()))
	}
}

// one reports a single session.
func (c *collector) one(out chan<- prometheus.Metric, p *speaker.PeerState, counted map[string]speaker.PeerCounters) {
	labels := []string{p.Name, p.Peer.Address.String(), typeLabel(p.Type)}
	set := func(name string, kind prometheus.ValueType, v float64) {
		out <- prometheus.MustNewConstMetric(c.of["peer_"+name], kind, v, labels...)
	}
	up, uptime := 0.0, 0.0
	if p.State == speaker.Established {
		up, uptime = 1, c.now().Sub(p.Since).Seconds()
	}
	set("up", prometheus.GaugeValue, up)
	set("uptime_seconds", prometheus.GaugeValue, uptime)
	set("state", prometheus.GaugeValue, float64(p.State))
	set("flaps_total", prometheus.CounterValue, float64(p.Flaps))
	if p.Path != "" {
		set("bfd_up", prometheus.GaugeValue, map[bool]float64{true: 1}[strings.HasPrefix(p.Path, "up")])
	}
	if n, ok := counted[p.Name]; ok {
		for name, v := range numbers(n) {
			set(name, prometheus.GaugeValue, float64(v))
		}
	}
}

func numbers(n speaker.PeerCounters) map[string]uint64 {
	return map[string]uint64{"received_prefixes": n.Received, "accepted_prefixes": n.Accepted, "advertised_prefixes": n.Advertised}
}

// counts returns the last counts by name of the peer, and has new ones taken if it is time. The map is never changed.
func (c *collector) counts() map[string]speaker.PeerCounters {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.counting && !c.now().Before(c.next) {
		c.counting = true
		c.spawn(c.count)
	}
	return c.counted
}

func (c *collector) count() {
	begin := c.now()
	list, err := c.bird.Peers("")
	counted := make(map[string]speaker.PeerCounters, len(list))
	for _, p := range list {
		counted[p.Name] = p.PeerCounters
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	took := c.now().Sub(begin)
	c.counting, c.next = false, c.now().Add(max(sampleEvery, sampleShare*took))
	if err == nil {
		c.counted = counted
	}
}
