package lease

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	slotsDesc = prometheus.NewDesc("felix_ipam_reserve_addresses", "Addresses in the node's reserve, by class of requests and phase.",
		[]string{"class", "phase"}, nil)
	targetDesc    = prometheus.NewDesc("felix_ipam_reserve_target", "Warm addresses that are aimed at.", []string{"class"}, nil)
	hitsDesc      = prometheus.NewDesc("felix_ipam_reserve_hits_total", "Requests that were served without a remote call.", nil, nil)
	missesDesc    = prometheus.NewDesc("felix_ipam_reserve_misses_total", "Requests that the reserve could not serve.", []string{"reason"}, nil)
	unsettledDesc = prometheus.NewDesc("felix_ipam_unsettled_addresses", "Addresses that pods have and typha was not told of, or did not say so.", nil, nil)
	oldestDesc    = prometheus.NewDesc("felix_ipam_unsettled_oldest_seconds", "For how long the oldest of them is so.", nil, nil)
	debtsDesc     = prometheus.NewDesc("felix_ipam_pending_releases", "Handles whose addresses are still to be freed.", nil, nil)
	silentDesc    = prometheus.NewDesc("felix_ipam_silent_seconds", "Time since typha confirmed the reserve; absent before the first time.", nil, nil)
	commitsDesc   = prometheus.NewDesc("felix_ipam_journal_commits_total", "Writes of the journal, each with one sync for all who waited.", nil, nil)
	failuresDesc  = prometheus.NewDesc("felix_ipam_journal_failures_total", "Writes of the journal that failed.", nil, nil)
)

// Describe tells what is collected.
func (p *Pool) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		slotsDesc, targetDesc, hitsDesc, missesDesc, unsettledDesc, oldestDesc, debtsDesc, silentDesc, commitsDesc, failuresDesc,
	} {
		out <- d
	}
}

// Collect tells how the pool is doing.
func (p *Pool) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.core.Usage(p.cfg.now())
	for class, phases := range u.Slots {
		for phase, n := range phases {
			gauge(slotsDesc, float64(n), class.String(), string(phase))
		}
	}
	for class, n := range u.Targets {
		gauge(targetDesc, float64(n), class.String())
	}
	counter(hitsDesc, p.hits)
	for _, m := range []Miss{Off, Untrust, Empty} {
		counter(missesDesc, p.misses[m], string(m))
	}
	gauge(unsettledDesc, float64(u.Unsettled))
	gauge(oldestDesc, u.Oldest.Seconds())
	gauge(debtsDesc, float64(u.Debts))
	if u.Epoch != 0 {
		gauge(silentDesc, u.Silent.Seconds())
	}
	p.journal.mu.Lock()
	defer p.journal.mu.Unlock()
	counter(commitsDesc, p.journal.commits)
	counter(failuresDesc, p.journal.failures)
}
