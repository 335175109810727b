package policysync

import "github.com/prometheus/client_golang/prometheus"

var (
	socketsDesc  = prometheus.NewDesc("felix_policy_sync_sockets", "Pods that can ask for their policy.", nil, nil)
	streamsDesc  = prometheus.NewDesc("felix_policy_sync_streams", "Streams by which pods are told their policy.", nil, nil)
	requestsDesc = prometheus.NewDesc("felix_policy_sync_requests_total", "HTTP requests that pods' proxies decided on.", []string{"decision"}, nil)
)

// Describe is of prometheus.Collector.
func (s *Server) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, out) }

// Collect is of prometheus.Collector.
func (s *Server) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(socketsDesc, prometheus.GaugeValue, float64(s.counts.sockets.Load()))
	out <- prometheus.MustNewConstMetric(streamsDesc, prometheus.GaugeValue, float64(s.counts.streams.Load()))
	out <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(s.counts.allowed.Load()), "allowed")
	out <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(s.counts.denied.Load()), "denied")
}
