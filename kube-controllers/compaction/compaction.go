// Package compaction has etcd forget old revisions, which it would keep for ever: every so often those that were there the time
// before. So a watch that was away for less than a period goes on where it was.
package compaction

import (
	"context"
	"log/slog"
	"time"
)

// Store is an etcd.
type Store interface {
	// Head is the newest revision.
	Head(ctx context.Context) (int64, error)
	// Compact has revisions before this one forgotten.
	Compact(ctx context.Context, revision int64) error
}

// Run compacts every period until ctx ends. What fails is left for the next time.
func Run(ctx context.Context, store Store, period time.Duration, log *slog.Logger) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	var before int64 // the newest revision a period ago; 0 if it is not known
	for {
		head, err := store.Head(ctx)
		if err == nil && before > 0 && before < head {
			if err = store.Compact(ctx, before); err == nil {
				log.Debug("compacted etcd", "revision", before)
			}
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("cannot compact etcd, trying again after a period", "period", period, "error", err)
		}
		if err == nil {
			before = head
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
