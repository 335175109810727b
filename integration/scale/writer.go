package scale

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
)

// Writer writes what a world says through the project's own client of the datastore.
type Writer struct {
	store datastore.Client // without checks of objects against each other: the world knows what it makes

	mu        sync.Mutex // guards revisions
	revisions map[api.Key]string
}

// NewWriter returns a writer over a datastore that holds nothing of the world yet.
func NewWriter(store datastore.Client) *Writer {
	return &Writer{store: store, revisions: map[api.Key]string{}}
}

// Stamp tells when a write began that clients can tell by what they receive.
type Stamp struct {
	Tells string
	At    time.Duration // see now
}

// fillAtOnce is how many objects are written at a time while a datastore is filled.
const fillAtOnce = 64

// Fill writes all objects of a world. Progress, if not nil, is told of every thousandth.
func (w *Writer) Fill(ctx context.Context, world *World, progress func(objects int)) (objects int, err error) {
	if err := datastore.Init(ctx, datastore.Validating(w.store)); err != nil {
		return 0, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fillAtOnce)
	for o := range world.Objects() {
		if ctx.Err() != nil {
			break
		}
		if objects++; progress != nil && objects%1000 == 0 {
			progress(objects)
		}
		group.Go(func() error { return w.write(ctx, Write{Verb: Create, Object: o}) })
	}
	return objects, group.Wait()
}

// Apply makes a change, write by write, and returns what clients are going to tell.
func (w *Writer) Apply(ctx context.Context, c Change) (stamps []Stamp, err error) {
	for _, write := range c.Writes {
		at := now()
		if err := w.write(ctx, write); err != nil {
			return stamps, err
		}
		if write.Tells != "" {
			stamps = append(stamps, Stamp{write.Tells, at})
		}
	}
	return stamps, nil
}

func (w *Writer) write(ctx context.Context, write Write) error {
	key := api.KeyOf(write.Object)
	stored, err := w.try(ctx, key, write)
	// typha writes too: conditions of nodes, addresses of tunnels
	for errors.Is(err, datastore.ErrConflict) {
		var newer api.Object
		if newer, err = w.store.Get(ctx, key); err == nil {
			w.note(key, newer)
			stored, err = w.try(ctx, key, write)
		}
	}
	if err != nil {
		return fmt.Errorf("write of %s: %w", key, err)
	}
	if write.Verb == Delete {
		stored = nil
	}
	w.note(key, stored)
	return nil
}

func (w *Writer) try(ctx context.Context, key api.Key, write Write) (api.Object, error) {
	switch write.Verb {
	case Create:
		return w.store.Create(ctx, write.Object)
	case Update:
		o := write.Object
		w.mu.Lock()
		o.SetResourceVersion(w.revisions[key])
		w.mu.Unlock()
		return w.store.Update(ctx, o)
	}
	return w.store.Delete(ctx, key, datastore.Precondition{})
}

func (w *Writer) note(key api.Key, stored api.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if stored == nil {
		delete(w.revisions, key)
		return
	}
	w.revisions[key] = stored.GetResourceVersion()
}

// Churn is what came of changes at given rates.
type Churn struct {
	Stamps  []Stamp       // what clients are going to tell
	Changes int           // how many there were
	Late    time.Duration // by how much the latest began after its time
}

// changesAtOnce is how many changes are written at a time, each of another place.
const changesAtOnce = 16

// Churn makes changes at given rates for a time. What cannot be written in time is late, and nothing is skipped. only says which
// pods may be touched; nil means all.
func (w *Writer) Churn(ctx context.Context, world *World, rates Rates, only func(pod int) bool, during time.Duration) (out Churn, err error) {
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex // guards out
	var queues [changesAtOnce]chan Change
	for i := range queues {
		queues[i] = make(chan Change, 1024)
		group.Go(func() error {
			for c := range queues[i] {
				stamps, err := w.Apply(ctx, c)
				if err != nil {
					return err
				}
				mu.Lock()
				out.Stamps = append(out.Stamps, stamps...)
				mu.Unlock()
			}
			return nil
		})
	}
	group.Go(func() error {
		defer func() {
			for _, q := range queues {
				close(q)
			}
		}()
		begin, next := now(), map[Kind]time.Duration{}
		for {
			kind, at := due(rates, next, during)
			if err := backoff.Pause(ctx, begin+at-now()); err != nil || kind == "" {
				return err
			}
			next[kind] += time.Duration(float64(time.Second) / rates[kind])
			out.Changes++
			out.Late = max(out.Late, now()-begin-at)
			c := world.Change(kind, only)
			hash := fnv.New32a()
			hash.Write([]byte(c.Place))
			select {
			case queues[hash.Sum32()%changesAtOnce] <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	err = group.Wait()
	return out, err
}

// due is which kind of change is next, and when; none, at the end.
func due(rates Rates, next map[Kind]time.Duration, end time.Duration) (first Kind, at time.Duration) {
	at = end
	for _, kind := range slices.Sorted(maps.Keys(rates)) {
		if rates[kind] > 0 && next[kind] < at {
			first, at = kind, next[kind]
		}
	}
	return first, at
}
