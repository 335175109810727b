package datastore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unique"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/backoff"
)

// Delta is one step of what Follow tells: applying Changes in order to the state before gives the state at Revision.
type Delta[T api.Object] struct {
	Changes  []Change[T] // empty when only the revision moved on
	Revision string      // all changes of the kind up to here have been told
	Seen     Seen        // the highest revisions of what happened; empty if nothing did, or where it is not told
	InSync   bool        // true exactly once: the state is complete for the first time
}

// Change is one object added, modified or deleted.
type Change[T api.Object] struct {
	Type   EventType // Added, Modified or Deleted, as seen by the consumer: Added only for what he does not have
	Key    api.Key
	Object T // for Deleted the last state known, which may have nothing but its key
}

// FollowOptions tune Follow. The zero value follows all namespaces.
type FollowOptions struct {
	Namespace string
	Logger    *slog.Logger // for the begin and end of trouble; nil means slog.Default
	// Trouble, if set, is told each failure to reach the datastore, and nil once it is reached again; the log says it no
	// louder than Debug then.
	Trouble func(error)
}

// maxDelta bounds the changes gathered into one Delta after the first.
const maxDelta = 1000

// Follow tells apply the objects of a kind and then each change of them, for as long as ctx lives. T is the kind's Go
// type, or api.Object.
//
// The first Delta is the whole listing and is InSync. Afterwards every Delta has what happened since the one before;
// those that wait while apply is busy are put together. Follow survives whatever happens to the datastore: it retries
// with growing, jittered waits, resumes where it was, and where that is not possible lists again and tells only what is
// different, deletions included. The consumer never has to be reset.
//
// apply is called from one goroutine, in order; the objects are the consumer's to read, shared with nobody who writes.
// Follow returns when ctx ends (its error), when apply fails (that error), or at once if the kind is unknown or not T.
func Follow[T api.Object](ctx context.Context, r Reader, kind string, opts FollowOptions, apply func(Delta[T]) error) error {
	k, ok := api.LookupKind(kind)
	if !ok {
		return fmt.Errorf("follow: kind %q is not known to this version", kind)
	}
	if _, ok := k.New().(T); !ok {
		return fmt.Errorf("follow: objects of kind %s are %T, not %T", kind, k.New(), *new(T))
	}
	f := &follower[T]{
		reader: r, kind: k, opts: opts, apply: apply,
		log:   cmp.Or(opts.Logger, slog.Default()).With("kind", k.Name),
		known: map[api.Key]string{},
		retry: backoff.Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second},
	}
	return f.run(ctx)
}

// follower is a running Follow.
type follower[T api.Object] struct {
	reader Reader
	kind   api.Kind
	opts   FollowOptions
	apply  func(Delta[T]) error
	log    *slog.Logger

	known    map[api.Key]string // the resourceVersion of each object the consumer has
	revision string             // where the consumer is
	inSync   bool
	retry    backoff.Backoff
	troubled bool
}

// applyError marks the error of the consumer, which ends Follow, apart from those of the datastore.
type applyError struct{ error }

func (f *follower[T]) run(ctx context.Context) error {
	relist := true
	for {
		var err error
		if relist {
			err = f.list(ctx)
		}
		if err == nil {
			relist = false
			err = f.watch(ctx)
		}
		var fatal applyError
		switch {
		case errors.As(err, &fatal):
			return fatal.error
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrCompacted):
			f.log.Info("history of the datastore does not reach back to here, listing again", "revision", f.revision)
			relist = true
		case err != nil:
			f.trouble(err)
		}
		if err := f.retry.Wait(ctx); err != nil {
			return err
		}
	}
}

// level is how loud trouble is told: whoever is told of it tells of all kinds at once.
func (f *follower[T]) level(alone slog.Level) slog.Level {
	if f.opts.Trouble != nil {
		return slog.LevelDebug
	}
	return alone
}

// trouble reports that the datastore fails; log and consumer hear of the begin, the consumer of each repetition too.
func (f *follower[T]) trouble(err error) {
	if !f.troubled {
		f.log.Log(context.Background(), f.level(slog.LevelWarn), "cannot follow the datastore, trying again", "error", err)
	}
	f.troubled = true
	if f.opts.Trouble != nil {
		f.opts.Trouble(err)
	}
}

// well reports that the datastore works.
func (f *follower[T]) well() {
	if !f.troubled {
		return
	}
	f.troubled = false
	f.log.Log(context.Background(), f.level(slog.LevelInfo), "following the datastore again")
	if f.opts.Trouble != nil {
		f.opts.Trouble(nil)
	}
}

// list tells the difference between what the consumer has and what the datastore has.
func (f *follower[T]) list(ctx context.Context) error {
	l, err := f.reader.List(ctx, f.kind.Name, ListOptions{Namespace: f.opts.Namespace})
	if err != nil {
		return err
	}
	f.well()
	d := Delta[T]{Revision: l.Revision, Seen: l.Seen, InSync: !f.inSync}
	present := make(map[api.Key]string, len(l.Items))
	for _, o := range l.Items {
		// Copies: the texts of the objects lie among what was garbage once they were decoded, and kept for as long as this is they
		// would keep the memory around them from being used for anything else.
		key := api.Key{Kind: f.kind.Name, Namespace: unique.Make(o.GetNamespace()).Value(), Name: strings.Clone(o.GetName())}
		present[key] = strings.Clone(o.GetResourceVersion())
		had, ok := f.known[key]
		switch {
		case !ok:
			d.Changes = append(d.Changes, Change[T]{Added, key, o.(T)})
		case had != o.GetResourceVersion():
			d.Changes = append(d.Changes, Change[T]{Modified, key, o.(T)})
		}
	}
	for key := range f.known {
		if _, ok := present[key]; !ok {
			d.Changes = append(d.Changes, Change[T]{Deleted, key, f.bare(key)})
		}
	}
	f.known = present
	f.inSync = true
	return f.emit(d)
}

// watch tells changes until the watch ends, and returns why it did.
func (f *follower[T]) watch(ctx context.Context) error {
	w, err := f.reader.Watch(ctx, f.kind.Name, WatchOptions{Revision: f.revision, Namespace: f.opts.Namespace})
	if err != nil {
		return err
	}
	defer w.Stop()
	f.well()
	for e := range w.Events() {
		f.retry.Reset()
		if err := f.emit(f.gather(e, w.Events())); err != nil {
			return err
		}
	}
	return w.Err()
}

// gather makes a Delta of an event and those that already wait behind it.
func (f *follower[T]) gather(e Event, more <-chan Event) Delta[T] {
	var d Delta[T]
	for {
		d.Revision, d.Seen = e.Revision, e.Seen
		if c, ok := f.change(e); ok {
			d.Changes = append(d.Changes, c)
		}
		if len(d.Changes) == maxDelta {
			return d
		}
		var ok bool
		select {
		case e, ok = <-more:
			if !ok {
				return d
			}
		default:
			return d
		}
	}
}

// change says what an event means to the consumer, given what he has.
func (f *follower[T]) change(e Event) (Change[T], bool) {
	had, ok := f.known[e.Key]
	switch e.Type {
	case Bookmark:
		return Change[T]{}, false
	case Deleted:
		if !ok {
			return Change[T]{}, false
		}
		delete(f.known, e.Key)
		last, isT := e.Object.(T)
		if !isT {
			last = f.bare(e.Key)
		}
		return Change[T]{Deleted, e.Key, last}, true
	}
	revision := e.Object.GetResourceVersion()
	f.known[e.Key] = revision
	switch {
	case !ok:
		return Change[T]{Added, e.Key, e.Object.(T)}, true
	case had == revision: // he has it
		return Change[T]{}, false
	}
	return Change[T]{Modified, e.Key, e.Object.(T)}, true
}

func (f *follower[T]) emit(d Delta[T]) error {
	if err := f.apply(d); err != nil {
		return applyError{err}
	}
	f.revision = d.Revision
	return nil
}

// bare returns an object that has nothing but its key.
func (f *follower[T]) bare(key api.Key) T {
	o := f.kind.New()
	o.SetNamespace(key.Namespace)
	o.SetName(key.Name)
	return o.(T)
}
