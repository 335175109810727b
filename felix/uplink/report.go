package uplink

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/typha/client"
)

// A report that failed is sent again after retryReport; the whole is repeated every repeatReport, so that a typha that
// lost it learns it again.
const (
	retryReport  = 500 * time.Millisecond
	repeatReport = 30 * time.Second
)

// Reports takes what runs on a node.
type Reports interface {
	Report(ctx context.Context, r client.Report) (refused []client.RefusedEndpoint, stored bool, err error)
}

// Reporter tells typha which endpoints are on the node: always all of them, and only the latest.
type Reporter struct {
	typha    Reports
	log      *slog.Logger
	instance string
	changed  chan struct{}

	mu     sync.Mutex // guards latest and known
	latest []state.Endpoint
	known  bool
}

// NewReporter returns a reporter that waits for its first Set.
func NewReporter(typha Reports, log *slog.Logger) *Reporter {
	return &Reporter{typha: typha, log: log, instance: uuid.NewString(), changed: make(chan struct{}, 1)}
}

// Set makes all the endpoints there are. It never blocks.
func (r *Reporter) Set(all []state.Endpoint) {
	r.mu.Lock()
	r.latest, r.known = all, true
	r.mu.Unlock()
	r.Again()
}

// Again has the latest report sent once more, as after typha came back.
func (r *Reporter) Again() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Run sends reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	timer := time.NewTimer(repeatReport)
	defer timer.Stop()
	for sequence := uint64(1); ; sequence++ {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		case <-timer.C:
		}
		timer.Reset(repeatReport)
		if err := r.send(ctx, sequence); err != nil {
			r.log.Info("endpoints are reported later", "error", err)
			timer.Reset(retryReport)
		}
	}
}

func (r *Reporter) send(ctx context.Context, sequence uint64) error {
	r.mu.Lock()
	latest, known := r.latest, r.known
	r.mu.Unlock()
	if !known {
		return nil
	}
	report := client.Report{Instance: r.instance, Sequence: sequence}
	for _, e := range latest {
		if e.Leaving {
			continue
		}
		report.Endpoints = append(report.Endpoints, client.Endpoint{
			ID: e.ID, UID: e.UID, ContainerID: e.ContainerID, Pod: e.Pod, Interface: e.Interface, MAC: e.MAC,
			Addresses: e.Addresses, Labels: e.Labels, Profiles: e.Profiles,
		})
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	refused, _, err := r.typha.Report(ctx, report)
	for _, e := range refused {
		r.log.Warn("typha does not take an endpoint; it stays closed", "endpoint", e.ID, "reason", e.Reason)
	}
	return err
}
