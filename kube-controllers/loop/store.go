package loop

import (
	"context"
	"log/slog"
	"sync"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// Store is a datastore of which each kind is followed once, however many loops decide by it. They share the objects.
type Store struct {
	datastore.Client
	trouble func(kind string, err error)
	log     *slog.Logger

	mu    sync.Mutex // guards feeds
	feeds map[string]*feed
}

// NewStore returns a Store of which nothing is followed yet. trouble is told each failure to follow a kind, and nil when that is
// over, or when nobody follows the kind any more; if it is nil, the log is.
func NewStore(c datastore.Client, trouble func(kind string, err error), log *slog.Logger) *Store {
	return &Store{Client: c, trouble: trouble, log: log, feeds: map[string]*feed{}}
}

// feed is one kind, which is followed for as long as somebody takes it.
type feed struct {
	users int // guarded by the Store
	stop  context.CancelFunc
	ended chan struct{} // closed when it is not followed any more
	err   error         // why not; to be read after that

	mu     sync.Mutex // guards the following
	all    Objects
	known  bool // all is what there is
	takers map[*taker]struct{}
}

// taker is told what changes, one call at a time. It must not wait.
type taker struct {
	take func(datastore.Delta[api.Object])
}

// follow tells take what there is of a kind, and then what changes, until ctx ends or the kind cannot be followed at all.
func (s *Store) follow(ctx context.Context, kind string, take func(datastore.Delta[api.Object])) error {
	f := s.join(kind)
	defer s.leave(kind, f)
	defer f.remove(f.add(take))
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-f.ended:
		return f.err
	}
}

// alone does the same for one that keeps a part of each object only, and so shares them with nobody.
func (s *Store) alone(ctx context.Context, kind string, take func(datastore.Delta[api.Object])) error {
	if s.trouble != nil {
		defer s.trouble(kind, nil)
	}
	return datastore.Follow(ctx, s.Client, kind, s.options(kind), func(d datastore.Delta[api.Object]) error {
		take(d)
		return nil
	})
}

func (s *Store) options(kind string) datastore.FollowOptions {
	o := datastore.FollowOptions{Logger: s.log}
	if s.trouble != nil {
		o.Trouble = func(err error) { s.trouble(kind, err) }
	}
	return o
}

func (s *Store) join(kind string) *feed {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.feeds[kind]
	if f == nil {
		ctx, stop := context.WithCancel(context.Background()) // it lasts as long as the last who takes it
		f = &feed{stop: stop, ended: make(chan struct{}), all: Objects{}, takers: map[*taker]struct{}{}}
		s.feeds[kind] = f
		go func() {
			defer close(f.ended)
			f.err = s.alone(ctx, kind, f.take)
		}()
	}
	f.users++
	return f
}

func (s *Store) leave(kind string, f *feed) {
	s.mu.Lock()
	f.users--
	last := f.users == 0
	if last {
		delete(s.feeds, kind)
	}
	s.mu.Unlock()
	if last {
		f.stop()
		<-f.ended
	}
}

// add has what is known told to somebody, and what is told from now on.
func (f *feed) add(take func(datastore.Delta[api.Object])) *taker {
	t := &taker{take}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.takers[t] = struct{}{}
	if f.known {
		d := datastore.Delta[api.Object]{InSync: true}
		for key, o := range f.all {
			d.Changes = append(d.Changes, datastore.Change[api.Object]{Type: datastore.Added, Key: key, Object: o})
		}
		take(d)
	}
	return t
}

func (f *feed) remove(t *taker) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.takers, t)
}

// take tells everybody.
func (f *feed) take(d datastore.Delta[api.Object]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = f.known || d.InSync
	f.all.apply(d.Changes)
	for t := range f.takers {
		t.take(d)
	}
}

// apply makes what there is what it has become.
func (all Objects) apply(changes []datastore.Change[api.Object]) {
	for _, c := range changes {
		if c.Type == datastore.Deleted {
			delete(all, c.Key)
		} else {
			all[c.Key] = c.Object
		}
	}
}
