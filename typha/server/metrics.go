package server

import "github.com/prometheus/client_golang/prometheus"

// metrics are what /metrics tells of the server.
type metrics struct {
	clients   *prometheus.GaugeVec
	batches   prometheus.Counter
	items     prometheus.Counter
	bytes     prometheus.Counter
	resends   prometheus.Counter
	resumed   *prometheus.CounterVec
	behind    prometheus.Gauge
	moved     prometheus.Counter
	failures  prometheus.Counter
	calls     *prometheus.CounterVec
	refused   *prometheus.CounterVec
	unwritten prometheus.Gauge
	written   *prometheus.CounterVec
}

func newMetrics(r *prometheus.Registry) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "typha", Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "typha", Name: name, Help: help}, labels)
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "typha", Name: name, Help: help})
		r.MustRegister(g)
		return g
	}
	clients := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "typha", Name: "clients", Help: "Connected clients by view."}, []string{"view"})
	r.MustRegister(clients)
	return &metrics{
		clients:   clients,
		batches:   counter("batches_sent_total", "Batches sent to clients."),
		items:     counter("items_sent_total", "Items sent to clients, removals included."),
		bytes:     counter("bytes_sent_total", "Bytes of items sent to clients, before TLS."),
		resends:   counter("resends_total", "Items that clients asked for again."),
		resumed:   counters("streams_total", "Streams opened, by whether the client's saved state was built upon.", "resumed"),
		behind:    gauge("clients_behind", "Clients with a batch that waits for their acknowledgement."),
		moved:     counter("clients_moved_total", "Clients that were asked to use another replica because this one has more than its share."),
		failures:  counter("client_failures_total", "Items that clients reported as not programmed."),
		calls:     counters("calls_total", "Finished calls and streams by method and status code.", "method", "code"),
		refused:   counters("refused_total", "What clients were refused, by reason; docs/operations.md says what each means.", "reason"),
		unwritten: gauge("endpoints_unwritten", "Reported endpoints that are not in the datastore yet."),
		written:   counters("endpoint_writes_total", "Writes of endpoints to the datastore, by result.", "result"),
	}
}
