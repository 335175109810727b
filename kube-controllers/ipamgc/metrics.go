package ipamgc

import (
	"math/big"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc/leak"
)

// metrics have the names of Calico's. Those by node are what older versions had, and dashboards still want.
type metrics struct {
	inUse, borrowed, candidates, blocks *prometheus.GaugeVec // by pool and node
	size, reserved                      *prometheus.GaugeVec // by pool
	nodeInUse, nodeBorrowed, nodeBlocks *prometheus.GaugeVec
	warm                                *prometheus.GaugeVec // by pool and node; an addition
	collected                           *prometheus.CounterVec

	mu sync.Mutex // a scrape sees all of one look
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	m.inUse = gauge("ipam_allocations_in_use", "Addresses that are given out, those of warm pools included.", "ippool", "node")
	m.borrowed = gauge("ipam_allocations_borrowed", "Addresses given to a node out of a block that is not its own.", "ippool", "node")
	m.candidates = gauge("ipam_allocations_gc_candidates", "Addresses that nothing seems to have, and that are not proven to be lost.", "ippool", "node")
	m.blocks = gauge("ipam_blocks", "Blocks of a node, or of nobody (no_affinity).", "ippool", "node")
	m.warm = gauge("ipam_allocations_warm", "Addresses that a node holds ready for pods.", "ippool", "node")
	m.size = gauge("ipam_ippool_size", "Addresses of a pool.", "ippool")
	m.reserved = gauge("ipam_ippool_reserved", "Addresses of a pool that IPReservations keep from being given out.", "ippool")
	m.nodeInUse = gauge("ipam_allocations_per_node", "Addresses given to a node.", "node")
	m.nodeBorrowed = gauge("ipam_allocations_borrowed_per_node", "Addresses given to a node out of blocks that are not its own.", "node")
	m.nodeBlocks = gauge("ipam_blocks_per_node", "Blocks of a node.", "node")
	m.collected = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ipam_allocations_gc_reclamations", Help: "Lost addresses that were released.",
	}, []string{"ippool", "node"})
	registry.MustRegister(m)
	return m
}

func (m *metrics) gauges() []*prometheus.GaugeVec {
	return []*prometheus.GaugeVec{
		m.inUse, m.borrowed, m.candidates, m.blocks, m.warm, m.size, m.reserved, m.nodeInUse, m.nodeBorrowed, m.nodeBlocks,
	}
}

// Describe names all metrics.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, g := range m.gauges() {
		g.Describe(out)
	}
	m.collected.Describe(out)
}

// Collect gives all values, those of one look.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.gauges() {
		g.Collect(out)
	}
	m.collected.Collect(out)
}

// show makes the metrics what was seen.
func (m *metrics) show(f facts, plan leak.Plan) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.gauges() {
		g.Reset()
	}
	for _, p := range f.pools {
		if !p.Prefix().IsValid() {
			continue
		}
		m.size.WithLabelValues(p.Name).Set(float(block.Addresses(p.Prefix())))
		m.reserved.WithLabelValues(p.Name).Set(float(f.Reserved.Count(p.Prefix())))
	}
	for _, b := range f.Blocks {
		m.count(f.pool(b.CIDR().Addr()), b)
	}
	for _, a := range plan.Candidates {
		m.candidates.WithLabelValues(f.pool(a.Addr), a.Node).Inc()
	}
}

func (m *metrics) count(pool string, b block.Block) {
	kind, owner := b.Owner()
	if owner == "" {
		owner = "no_affinity"
	}
	m.blocks.WithLabelValues(pool, owner).Inc()
	if kind == api.AffinityHost {
		m.nodeBlocks.WithLabelValues(owner).Inc()
	}
	for a := range b.All() {
		node := a.Owner[api.OwnerNode]
		if a.Cooling() {
			continue
		}
		if node == "" {
			node = owner
		}
		m.inUse.WithLabelValues(pool, node).Inc()
		m.nodeInUse.WithLabelValues(node).Inc()
		if a.Purpose() == block.Warm {
			m.warm.WithLabelValues(pool, node).Inc()
		}
		if node != owner {
			m.borrowed.WithLabelValues(pool, node).Inc()
			m.nodeBorrowed.WithLabelValues(node).Inc()
		}
	}
}

func (m *metrics) reclaimed(f facts, lost []leak.Address) {
	for _, a := range lost {
		m.collected.WithLabelValues(f.pool(a.Addr), a.Node).Inc()
	}
}

func float(n *big.Int) float64 {
	f, _ := new(big.Float).SetInt(n).Float64()
	return f
}
