package uplink

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/muslin-net/muslin/typha/client"
)

// Statuses takes what a node says of itself.
type Statuses interface {
	ReportStatus(ctx context.Context, conditions []client.Condition, capabilities map[string]string) error
}

// Status tells typha what the node's kernel can do: always all of it, and only the latest. What that means for pools is
// typha's to say.
type Status struct {
	typha   Statuses
	log     *slog.Logger
	changed chan struct{}

	mu           sync.Mutex // guards the following
	capabilities map[string]string
	known        bool // capabilities were told
}

// NewStatus returns a reporter that says nothing before it was told the capabilities.
func NewStatus(typha Statuses, log *slog.Logger) *Status {
	return &Status{typha: typha, log: log, changed: make(chan struct{}, 1)}
}

// SetCapabilities says what the kernel can do, name to detail. It never blocks.
func (r *Status) SetCapabilities(has map[string]string) {
	r.mu.Lock()
	r.capabilities, r.known = maps.Clone(has), true
	r.mu.Unlock()
	r.Again()
}

// Again has the latest told once more, as after typha came back.
func (r *Status) Again() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Run tells typha of changes until ctx ends.
func (r *Status) Run(ctx context.Context) error {
	timer := time.NewTimer(repeatReport)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		case <-timer.C:
		}
		timer.Reset(repeatReport)
		if err := r.send(ctx); err != nil {
			r.log.Info("the node's status is reported later", "error", err)
			timer.Reset(retryReport)
		}
	}
}

func (r *Status) send(ctx context.Context) error {
	r.mu.Lock()
	known, capabilities := r.known, r.capabilities
	r.mu.Unlock()
	if !known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return r.typha.ReportStatus(ctx, nil, capabilities)
}
