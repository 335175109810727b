package uplink

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/client"
)

// Statuses takes what a node says of itself.
type Statuses interface {
	ReportStatus(ctx context.Context, conditions []client.Condition, capabilities map[string]string) error
}

// Status tells typha what the node's kernel can do, and what it refuses. What that means for pools is typha's to say.
type Status struct {
	latest[told]
	typha Statuses
	log   *slog.Logger

	mu           sync.Mutex // guards the following
	capabilities map[string]string
	conditions   []client.Condition
}

// told is what typha is told at once, as one replaces all.
type told struct {
	conditions   []client.Condition
	capabilities map[string]string
}

// NewStatus returns a reporter that says nothing before it was told the capabilities.
func NewStatus(typha Statuses, log *slog.Logger) *Status {
	return &Status{latest: newLatest[told](), typha: typha, log: log}
}

// SetCapabilities says what the kernel can do, name to detail. It never blocks.
func (r *Status) SetCapabilities(has map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.capabilities = maps.Clone(has)
	r.tell()
}

// SetTrouble says that the kernel refuses something: the reason and the message of the condition DataplaneProgrammed, which
// is not there without a reason. It never blocks.
func (r *Status) SetTrouble(reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conditions = nil
	if reason != "" {
		r.conditions = []client.Condition{{Type: api.ConditionDataplaneProgrammed, Reason: reason, Message: message}}
	}
	r.tell()
}

// tell has all told, once the capabilities are known: without them it would seem that the kernel has none.
func (r *Status) tell() {
	if r.capabilities != nil {
		r.set(told{r.conditions, r.capabilities})
	}
}

// Run tells typha of changes until ctx ends.
func (r *Status) Run(ctx context.Context) error {
	return r.run(ctx, r.log, "the node's status is reported later", func(ctx context.Context, t told) error {
		return r.typha.ReportStatus(ctx, t.conditions, t.capabilities)
	})
}
