package agent

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/dataplane"
)

const (
	// passing is how long something may fail before others are told: what comes and goes under felix's hands, as
	// interfaces do, fails once or twice.
	passing = 2 * time.Second
	// retell is how much time lies between two messages about the same reason, as wording may change with each attempt.
	retell = 10 * time.Second
	// longestTrouble is how much of what fails is said in a condition, in bytes; the log has all.
	longestTrouble = 500
)

// The drivers, as errors, conditions and metrics name them: by their packages.
const (
	driverLink      = "link"
	driverTunnel    = "tunnel"
	driverIPIP      = "ipip"
	driverRules     = "rules"
	driverConntrack = "conntrack"
	driverRoute     = "route"
)

// troubles remember which drivers fail. The zero value has none.
type troubles struct {
	mu      sync.Mutex // guards the following
	drivers map[string]trouble
	reason  string // as was told last
	message string
	told    time.Time
}

// trouble is a driver that failed at some time.
type trouble struct {
	failures uint64
	since    time.Time // of the first failure after which it has not succeeded; zero: it works
	err      error     // the latest
}

// note takes the outcome of an Apply, and returns what a condition should say if that is news.
func (t *troubles) note(err error) (reason, message string, news bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	failed := map[string]error{}
	byDriver(err, failed)
	for name, f := range t.drivers {
		if failed[name] == nil {
			f.since, f.err = time.Time{}, nil
			t.drivers[name] = f
		}
	}
	for name, err := range failed {
		if t.drivers == nil {
			t.drivers = map[string]trouble{}
		}
		f := t.drivers[name]
		f.err = err
		f.failures++
		if f.since.IsZero() {
			f.since = now
		}
		t.drivers[name] = f
	}
	reason, message = t.condition(now)
	if reason == t.reason && (message == t.message || now.Sub(t.told) < retell) {
		return "", "", false
	}
	t.reason, t.message, t.told = reason, message, now
	return reason, message, true
}

// condition is what to say of those that have failed for some time.
func (t *troubles) condition(now time.Time) (reason, message string) {
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(t.drivers)) {
		f := t.drivers[name]
		if f.since.IsZero() || now.Sub(f.since) < passing {
			continue
		}
		if reason == "" {
			reason = api.ReasonProgrammingFails
		}
		if _, large := errors.AsType[*dataplane.SetLimitError](f.err); large {
			reason = api.ReasonSetTooLarge
		}
		texts = append(texts, strings.ReplaceAll(f.err.Error(), "\n", "; "))
	}
	message = strings.Join(texts, "; ")
	if len(message) > longestTrouble {
		message = strings.ToValidUTF8(message[:longestTrouble], "") + " …"
	}
	return reason, message
}

// byDriver sorts the parts of an error by the driver whose they are; those of nobody are by "".
func byDriver(err error, into map[string]error) {
	switch e := err.(type) { //nolint:errorlint // the parts are what is asked about
	case nil:
	case *dataplane.DriverError:
		into[e.Driver] = errors.Join(into[e.Driver], e)
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			byDriver(part, into)
		}
	default:
		into[""] = errors.Join(into[""], err)
	}
}

var (
	// The name is the one that dashboards for Calico have.
	failures = prometheus.NewDesc("felix_int_dataplane_failures",
		"Times that a driver could not program all that is wanted; each is tried again.", []string{"driver"}, nil)
	failing = prometheus.NewDesc("felix_int_dataplane_failing_seconds",
		"For how long a driver has not been able to program all that is wanted; 0 while it is.", []string{"driver"}, nil)
)

// Alarms collects which drivers fail, and since when.
type Alarms struct{ Agent *Agent }

// Describe tells what is collected.
func (Alarms) Describe(out chan<- *prometheus.Desc) {
	out <- failures
	out <- failing
}

// Collect tells it.
func (a Alarms) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	t := &a.Agent.troubles
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]trouble{}
	for _, name := range []string{driverLink, driverTunnel, driverIPIP, driverRules, driverConntrack, driverRoute} {
		all[name] = trouble{} // there before the first failure, so that a rate sees it
	}
	maps.Copy(all, t.drivers)
	for name, f := range all {
		var lasts time.Duration
		if !f.since.IsZero() {
			lasts = now.Sub(f.since)
		}
		out <- prometheus.MustNewConstMetric(failures, prometheus.CounterValue, float64(f.failures), name)
		out <- prometheus.MustNewConstMetric(failing, prometheus.GaugeValue, lasts.Seconds(), name)
	}
}
