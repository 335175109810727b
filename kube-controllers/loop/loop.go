// Package loop brings a controller the objects that it decides by, and calls it again when they change, when it has asked
// to be, and when it has failed. Controllers are functions of the whole: what they missed does not matter.
package loop

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

const (
	// gather is for how long changes are put together.
	gather = 50 * time.Millisecond
	// again is the time until a controller that failed is called again.
	again = time.Second
)

// Objects is what is stored of the kinds that a controller follows. It is the controller's to read.
type Objects map[api.Key]api.Object

// Of lists the objects of one Go type, in no order.
func Of[T api.Object](all Objects) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, o := range all {
			if t, ok := o.(T); ok && !yield(t) {
				return
			}
		}
	}
}

// Decide looks at what there is and writes what follows. It is called again after the time that it returns, if that is not
// 0, at the latest.
type Decide func(ctx context.Context, all Objects) (time.Duration, error)

// Run calls decide, one call at a time, until ctx ends: first when all objects of the kinds are known.
func Run(ctx context.Context, r datastore.Reader, kinds []string, log *slog.Logger, decide Decide) error {
	l := &loop{all: Objects{}, missing: len(kinds), news: make(chan struct{}, 1)}
	group, ctx := errgroup.WithContext(ctx)
	for _, kind := range kinds {
		group.Go(func() error { return datastore.Follow(ctx, r, kind, datastore.FollowOptions{Logger: log}, l.take) })
	}
	group.Go(func() error { return l.run(ctx, log, decide) })
	return group.Wait()
}

type loop struct {
	news chan struct{} // has room for one

	mu      sync.Mutex // guards the following
	all     Objects
	missing int // kinds that are not known yet
}

func (l *loop) take(d datastore.Delta[api.Object]) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.InSync {
		l.missing--
	}
	for _, c := range d.Changes {
		if c.Type == datastore.Deleted {
			delete(l.all, c.Key)
		} else {
			l.all[c.Key] = c.Object
		}
	}
	if d.InSync || len(d.Changes) > 0 {
		select {
		case l.news <- struct{}{}:
		default:
		}
	}
	return nil
}

// known is a copy of what there is; false until that is all.
func (l *loop) known() (Objects, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.all), l.missing == 0
}

func (l *loop) run(ctx context.Context, log *slog.Logger, decide Decide) error {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-due:
		case <-l.news:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(gather):
			}
		}
		all, complete := l.known()
		if !complete {
			continue
		}
		wait, err := decide(ctx, all)
		if err != nil && ctx.Err() == nil {
			log.Warn("controller failed, trying again", "error", err)
			wait = again
		}
		if due = nil; wait > 0 {
			due = time.After(wait)
		}
	}
}
