package uplink

import (
	"context"
	"log/slog"
	"maps"

	"github.com/muslin-net/muslin/typha/client"
)

// Statuses takes what a node says of itself.
type Statuses interface {
	ReportStatus(ctx context.Context, conditions []client.Condition, capabilities map[string]string) error
}

// Status tells typha what the node's kernel can do. What that means for pools is typha's to say.
type Status struct {
	latest[map[string]string]
	typha Statuses
	log   *slog.Logger
}

// NewStatus returns a reporter that says nothing before it was told the capabilities.
func NewStatus(typha Statuses, log *slog.Logger) *Status {
	return &Status{latest: newLatest[map[string]string](), typha: typha, log: log}
}

// SetCapabilities says what the kernel can do, name to detail. It never blocks.
func (r *Status) SetCapabilities(has map[string]string) { r.set(maps.Clone(has)) }

// Run tells typha of changes until ctx ends.
func (r *Status) Run(ctx context.Context) error {
	return r.run(ctx, r.log, "the node's status is reported later", func(ctx context.Context, capabilities map[string]string) error {
		return r.typha.ReportStatus(ctx, nil, capabilities)
	})
}
