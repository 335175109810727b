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
	"github.com/muslin-net/muslin/internal/backoff"
)

// again and longest bound the time until a controller that failed is called again.
const (
	again   = time.Second
	longest = time.Minute
)

// Config says what a controller wants to know.
type Config struct {
	Kinds  []string      // of the objects that it decides by
	Gather time.Duration // for how long changes are put together
	// Sources are what it decides by beside the datastore.
	Sources []Source
	// Every is how often it is called at least, though nothing has changed; 0 leaves that to it.
	Every time.Duration
	// Slim returns what of an object the controller needs, for kinds of which it needs little; the rest is forgotten.
	Slim map[string]func(api.Object) api.Object
	Log  *slog.Logger
}

// Source is something outside the datastore that a controller decides by, and reads itself.
type Source interface {
	// Follow calls changed when the source is complete, once, with true, and when something has changed, until ctx ends.
	Follow(ctx context.Context, changed func(complete bool)) error
}

// Table is a Source that has objects of one kind, by name: "namespace/name" where they have a namespace.
type Table[T any] interface {
	Source
	All() map[string]*T
}

// Objects is what is stored of the kinds that a controller follows. Others have the same objects: they are to be read.
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
func Run(ctx context.Context, s *Store, cfg Config, decide Decide) error {
	l := &loop{Config: cfg, all: Objects{}, missing: len(cfg.Kinds) + len(cfg.Sources), news: make(chan struct{}, 1)}
	group, ctx := errgroup.WithContext(ctx)
	for _, kind := range cfg.Kinds {
		if slim := cfg.Slim[kind]; slim != nil {
			group.Go(func() error {
				return s.alone(ctx, kind, func(d datastore.Delta[api.Object]) { l.take(slimmed(d, slim)) })
			})
			continue
		}
		group.Go(func() error { return s.follow(ctx, kind, l.take) })
	}
	for _, source := range cfg.Sources {
		group.Go(func() error { return source.Follow(ctx, l.changed) })
	}
	group.Go(func() error { return l.run(ctx, decide) })
	return group.Wait()
}

type loop struct {
	Config
	news chan struct{} // has room for one

	mu      sync.Mutex // guards the following
	all     Objects
	missing int // kinds and sources that are not known yet
}

// slimmed is what changed, cut down.
func slimmed(d datastore.Delta[api.Object], slim func(api.Object) api.Object) datastore.Delta[api.Object] {
	for i, c := range d.Changes {
		if c.Type != datastore.Deleted {
			d.Changes[i].Object = slim(c.Object)
		}
	}
	return d
}

func (l *loop) take(d datastore.Delta[api.Object]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.InSync {
		l.missing--
	}
	l.all.apply(d.Changes)
	if d.InSync || len(d.Changes) > 0 {
		l.wake()
	}
}

// changed is told by sources.
func (l *loop) changed(complete bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if complete {
		l.missing--
	}
	l.wake()
}

func (l *loop) wake() {
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// known is a copy of what there is; false until that is all.
func (l *loop) known() (Objects, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.all), l.missing == 0
}

func (l *loop) run(ctx context.Context, decide Decide) error {
	var due <-chan time.Time
	retry := backoff.Backoff{Min: again, Max: longest}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-due:
		case <-l.news:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(l.Gather):
			}
		}
		all, complete := l.known()
		if !complete {
			continue
		}
		wait, err := decide(ctx, all)
		if err != nil && ctx.Err() == nil {
			l.Log.Warn("controller failed, trying again", "error", err)
			wait = retry.Next()
		} else {
			retry.Reset()
		}
		if l.Every > 0 && (wait == 0 || l.Every < wait) {
			wait = l.Every
		}
		if due = nil; wait > 0 {
			due = time.After(wait)
		}
	}
}
