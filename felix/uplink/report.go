package uplink

import (
	"context"
	"log/slog"

	"github.com/google/uuid"

	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/typha/client"
)

// Reports takes what runs on a node.
type Reports interface {
	Report(ctx context.Context, r client.Report) (refused []client.RefusedEndpoint, stored bool, err error)
}

// Reporter tells typha which endpoints are on the node.
type Reporter struct {
	latest[[]state.Endpoint]
	typha    Reports
	log      *slog.Logger
	instance string
	sequence uint64 // of the last report; Run's own
}

// NewReporter returns a reporter that waits for its first Set.
func NewReporter(typha Reports, log *slog.Logger) *Reporter {
	return &Reporter{latest: newLatest[[]state.Endpoint](), typha: typha, log: log, instance: uuid.NewString()}
}

// Set makes all the endpoints there are. It never blocks.
func (r *Reporter) Set(all []state.Endpoint) { r.set(all) }

// Run sends reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	return r.run(ctx, r.log, "endpoints are reported later", r.send)
}

func (r *Reporter) send(ctx context.Context, all []state.Endpoint) error {
	r.sequence++
	report := client.Report{Instance: r.instance, Sequence: r.sequence}
	for _, e := range all {
		if e.Leaving {
			continue
		}
		report.Endpoints = append(report.Endpoints, client.Endpoint{
			ID: e.ID, UID: e.UID, ContainerID: e.ContainerID, Pod: e.Pod, Interface: e.Interface, MAC: e.MAC,
			Addresses: e.Addresses, Labels: e.Labels, Profiles: e.Profiles, QoS: e.QoS, AllowedSources: e.AllowedSources, Floating: e.Floating,
		})
	}
	refused, _, err := r.typha.Report(ctx, report)
	for _, e := range refused {
		r.log.Warn("typha does not take an endpoint; it stays closed", "endpoint", e.ID, "reason", e.Reason)
	}
	return err
}
