package intake

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what comes in.
type Metrics struct {
	objects *prometheus.GaugeVec
	invalid *prometheus.GaugeVec
	updates *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them, unless r is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "typha_intake_objects",
			Help: "Objects that count, by kind.",
		}, []string{"kind"}),
		invalid: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "typha_intake_invalid_objects",
			Help: "Objects that fail validation, by kind: policies deny, others are handled as absent.",
		}, []string{"kind"}),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "typha_intake_updates_total",
			Help: "Updates of objects by kind and result: changed, or unchanged for those that go no further.",
		}, []string{"kind", "result"}),
	}
	if r != nil {
		r.MustRegister(m.objects, m.invalid, m.updates)
	}
	return m
}
