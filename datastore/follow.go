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
	"github.com/muslin-net/muslin/api/keymap"
	"github.com/muslin-net/muslin/internal/backoff"
)

// Delta is one step of what Follow tells: applying Changes in order to the state before gives the state at Revision.
type Delta[T api.Object] struct {
	Changes  []Change[T] // empty when only the revision moved on
	Revision string      // all changes of the kind up to here have been told; empty of a part of the first listing
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
	// Parts has the first listing told in the parts in which the datastore is read, so that they need not all be held at once. They
	// have no Revision but for the last, which is InSync.
	Parts bool
	// Trouble, if set, is told each failure to reach the datastore, and nil once it is reached again; the log says it no
	// louder than Debug then.
	Trouble func(error)
}

// maxDelta bounds the changes gathered into one Delta after the first.
const maxDelta = 1000

// Follow tells apply the objects of a kind and then each change of them, for as long as ctx lives. T is the kind's Go
// type, or api.Object.
//
// The first Delta is the whole listing and is InSync (with Parts, the last of its parts is). Afterwards every Delta has what
// happened since the one before; those that wait while apply is busy are put together. Follow survives whatever happens to
// the datastore: it retries with growing, jittered waits, resumes where it was, and where that is not possible lists again
// and tells only what is different, deletions included. The consumer never has to be reset.
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

	known    keymap.Map[string] // the resourceVersion of each object the consumer has
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

// list tells the difference between what the consumer has and what the datastore has. A consumer that has no state yet may be told
// it in parts, one that has is told of the next all at once.
func (f *follower[T]) list(ctx context.Context) error {
	var d Delta[T]
	missing := map[api.Key]struct{}{}
	for key := range f.known.All() {
		missing[key] = struct{}{}
	}
	l, err := Pages(ctx, f.reader, f.kind.Name, ListOptions{Namespace: f.opts.Namespace}, func(page []api.Object) error {
		if f.opts.Parts && !f.inSync && len(d.Changes) > 0 {
			before := d
			d = Delta[T]{}
			if err := f.emitListed(before); err != nil {
				return err
			}
		}
		for _, o := range page {
			if c, ok := f.listed(o, missing); ok {
				d.Changes = append(d.Changes, c)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.well()
	d.Revision, d.Seen, d.InSync = l.Revision, l.Seen, !f.inSync
	for key := range missing {
		d.Changes = append(d.Changes, Change[T]{Deleted, key, f.bare(key)})
	}
	f.inSync = true
	return f.emitListed(d)
}

// listed says what an object of a listing means to the consumer, and takes it from those that are missing.
func (f *follower[T]) listed(o api.Object, missing map[api.Key]struct{}) (Change[T], bool) {
	key := api.KeyOf(o)
	delete(missing, key)
	had, known := f.known.Get(key)
	if known && had == o.GetResourceVersion() {
		return Change[T]{}, false
	}
	// Copies: the texts of the objects lie among what is garbage once they were decoded, and kept for as long as a key is they
	// would keep the memory around them from being used for anything else.
	key = api.Key{Kind: f.kind.Name, Namespace: unique.Make(key.Namespace).Value(), Name: strings.Clone(key.Name)}
	if known {
		return Change[T]{Modified, key, o.(T)}, true
	}
	return Change[T]{Added, key, o.(T)}, true
}

// emitListed tells changes of a listing, and notes what the consumer has then.
func (f *follower[T]) emitListed(d Delta[T]) error {
	for _, c := range d.Changes {
		if c.Type == Deleted {
			f.known.Delete(c.Key)
		} else {
			f.known.Set(c.Key, strings.Clone(c.Object.GetResourceVersion()))
		}
	}
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
	had, ok := f.known.Get(e.Key)
	switch e.Type {
	case Bookmark:
		return Change[T]{}, false
	case Deleted:
		if !ok {
			return Change[T]{}, false
		}
		f.known.Delete(e.Key)
		last, isT := e.Object.(T)
		if !isT {
			last = f.bare(e.Key)
		}
		return Change[T]{Deleted, e.Key, last}, true
	}
	revision := e.Object.GetResourceVersion()
	f.known.Set(e.Key, revision)
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
