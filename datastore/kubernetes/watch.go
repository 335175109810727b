package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
)

const eventBuffer = 128 // events read ahead of the consumer

// spread is within which time those whose history the server has forgotten say so. All of them come to know at once, when
// the server has started anew, and will list everything.
const spread = 3 * time.Second

// refusedFor is how long the server may refuse a watch until that is taken for what is meant: one that has just started may
// know neither roles nor custom resources.
const refusedFor = 10 * time.Second

// watcher is one watch: for each source a row of sessions, each taking over where the one before ended.
type watcher struct {
	c         *Client
	kind      string
	namespace string
	key       api.Key // of errors

	ctx    context.Context
	cancel context.CancelFunc
	events chan datastore.Event
	err    error // guarded by the closing of events

	mu   sync.Mutex // guards the following, and what order events are sent in
	at   []string   // how far each source is
	seen []string   // the last revision at which something happened in each; "0" if nothing did
}

// Watch streams the changes of a kind after a revision. See datastore.Reader.
func (c *Client) Watch(ctx context.Context, kind string, opts datastore.WatchOptions) (datastore.Watcher, error) {
	key := api.Key{Kind: kind, Namespace: opts.Namespace, Name: "*"}
	p, err := c.place(ctx, opWatch, kind, key)
	if err != nil {
		return nil, err
	}
	w := &watcher{c: c, kind: p.kind.Name, namespace: opts.Namespace, key: key, events: make(chan datastore.Event, eventBuffer)}
	if w.at, err = c.start(ctx, key, p, opts); err != nil {
		return nil, err
	}
	w.seen = strings.Split(strings.Repeat("0/", len(w.at)-1)+"0", "/")
	w.ctx, w.cancel = context.WithCancel(ctx)
	// A refusal is told at once. What is merely away may come back.
	first := make([]*session, len(p.sources))
	for i := range p.sources {
		if first[i], err = w.open(w.ctx, i, &p.sources[i]); isRefused(err) {
			break
		}
	}
	switch {
	case isRefused(err):
		err = c.explain(ctx, opWatch, key, err)
	case c.begin(w, p, first):
		return w, nil
	default:
		err = failed(opWatch, key, errClosed)
	}
	w.cancel()
	for _, s := range first {
		s.stop()
	}
	return nil, err
}

// start is where a watch begins in each source. Without a revision that is fixed now: a connection that breaks before the
// first event must not lose what happens meanwhile.
func (c *Client) start(ctx context.Context, key api.Key, p *place, opts datastore.WatchOptions) ([]string, error) {
	if opts.Revision != "" {
		at := strings.Split(opts.Revision, "/")
		if len(at) != len(p.sources) {
			return nil, failed(opWatch, key, fmt.Errorf("revision %q is not one of this kind, which is made of %d resources", opts.Revision, len(p.sources)))
		}
		for _, revision := range at {
			if _, err := parseRevision(revision); err != nil {
				return nil, failed(opWatch, key, fmt.Errorf("revision %q: %w", opts.Revision, err))
			}
		}
		return at, nil
	}
	var at []string
	for i := range p.sources {
		revision, err := c.now(ctx, opWatch, key, &p.sources[i], opts.Namespace)
		if err != nil {
			return nil, err
		}
		at = append(at, revision)
	}
	return at, nil
}

// begin starts the watch's goroutines, unless the client is closed.
func (c *Client) begin(w *watcher, p *place, first []*session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	stop := context.AfterFunc(c.ctx, w.cancel)
	c.tasks.Go(func() {
		defer close(w.events)
		defer w.cancel()
		defer stop()
		group, ctx := errgroup.WithContext(w.ctx)
		for i := range p.sources {
			group.Go(func() error { return w.follow(ctx, i, &p.sources[i], first[i]) })
		}
		w.err = group.Wait()
		if c.ctx.Err() != nil {
			w.err = failed(opWatch, w.key, errClosed)
		}
	})
	return true
}

// Events returns the stream; it is closed when the watch ends.
func (w *watcher) Events() <-chan datastore.Event { return w.events }

// Err tells why the watch ended. It is meaningful once Events is closed.
func (w *watcher) Err() error { return w.err }

// Stop ends the watch.
func (w *watcher) Stop() { w.cancel() }

// follow holds session after session with a source until the watch must end, and returns why. The first may be open already.
func (w *watcher) follow(ctx context.Context, i int, s *source, open *session) error {
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	var refused time.Time // since when, without a break
	failing := &failing{c: w.c, key: w.key}
	defer failing.over()
	for {
		heard, err := false, error(nil)
		if open == nil {
			open, err = w.open(ctx, i, s)
		}
		if err == nil {
			failing.note(ctx, nil)
			heard, err = w.hold(ctx, i, s, open)
			open = nil
		}
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			retry.Reset()
			refused = time.Time{}
		}
		switch {
		case isGone(err):
			if backoff.Pause(ctx, rand.N(spread)) != nil {
				return nil
			}
			return &datastore.Error{Op: opWatch, Key: w.key, Reason: datastore.ErrCompacted, Err: fmt.Errorf("%w; list again", err)}
		case !isRefused(err):
			refused = time.Time{}
		case refused.IsZero():
			refused = time.Now()
		case time.Since(refused) >= refusedFor:
			return w.c.explain(ctx, opWatch, w.key, err)
		}
		failing.note(ctx, err)
		if retry.Wait(ctx) != nil {
			return nil
		}
	}
}

// isRefused tells whether the server answered that this client may not watch, or that there is nothing to watch.
func isRefused(err error) bool {
	return apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsBadRequest(err)
}

// failing is whether a watch fails at present. The log is told when the first of all watches does, and when none does any more:
// they share one server.
type failing struct {
	c   *Client
	key api.Key
	now bool
}

// note notes how a session began or ended.
func (f *failing) note(ctx context.Context, err error) {
	if err == nil {
		f.over()
		return
	}
	if f.now {
		return
	}
	f.now = true
	f.c.mu.Lock()
	f.c.failing++
	first := f.c.failing == 1
	f.c.mu.Unlock()
	if first {
		f.c.log.Warn("watches of the Kubernetes API are interrupted; they go on from where they were", "error", f.c.explain(ctx, opWatch, f.key, err))
	}
}

// over notes that the watch works, or has ended.
func (f *failing) over() {
	if !f.now {
		return
	}
	f.now = false
	f.c.mu.Lock()
	f.c.failing--
	last := f.c.failing == 0
	f.c.mu.Unlock()
	if last && f.c.ctx.Err() == nil {
		f.c.log.Info("watches of the Kubernetes API go on", "server", f.c.host)
	}
}

// session is one request of a watch.
type session struct {
	stream watch.Interface
	cancel context.CancelFunc
}

func (s *session) stop() {
	if s != nil {
		s.cancel()
		s.stream.Stop()
	}
}

// open begins to watch a source where the watch is.
func (w *watcher) open(ctx context.Context, i int, s *source) (*session, error) {
	o := s.options(datastore.ListOptions{})
	// Many clients of one server should not come back in step.
	seconds := int64(300 + rand.IntN(300))
	o.Watch, o.AllowWatchBookmarks, o.ResourceVersion, o.TimeoutSeconds = true, true, w.reached(i), &seconds
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(w.c.cfg.OpTimeout, cancel)
	stream, err := s.request(w.namespace, o).Watch(ctx)
	switch inTime := late.Stop(); {
	case err == nil && inTime:
		return &session{stream, cancel}, nil
	case err == nil:
		stream.Stop()
	}
	cancel()
	if err == nil || errors.Is(err, context.Canceled) {
		err = context.DeadlineExceeded
	}
	return nil, err
}

// hold takes what comes in a session until something ends it, and returns what: nil if only its time was over. heard says that
// any event came.
func (w *watcher) hold(ctx context.Context, i int, s *source, open *session) (heard bool, err error) {
	defer open.stop()
	for {
		select {
		case <-ctx.Done():
			return heard, ctx.Err()
		case e, ok := <-open.stream.ResultChan():
			switch {
			case !ok:
				return heard, nil
			case e.Type == watch.Error:
				return heard, apierrors.FromObject(e.Object)
			}
			heard = true
			if err := w.take(ctx, i, s, e); err != nil {
				return heard, err
			}
		}
	}
}

func (w *watcher) reached(i int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at[i]
}

// take deals with one event of a source.
func (w *watcher) take(ctx context.Context, i int, s *source, e watch.Event) error {
	m, err := meta.Accessor(e.Object)
	if err != nil {
		return fmt.Errorf("watch of %s: %w", s.resource, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	event, ok := w.convert(s, e)
	if ok && s.look != nil && (event.Type == datastore.Deleted || m.GetName() != event.Key.Name) {
		if event, err = among(ctx, s, event); err != nil {
			return err // the session that follows begins before this event
		}
	}
	w.at[i] = m.GetResourceVersion()
	if e.Type != watch.Bookmark {
		w.seen[i] = w.at[i]
	}
	event.Revision, event.Seen = strings.Join(w.at, "/"), datastore.Seen(strings.Join(w.seen, "/"))
	if ok {
		select {
		case w.events <- event:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select { // a consumer without room for it does without: another one will come
	case w.events <- datastore.Event{Type: datastore.Bookmark, Revision: event.Revision, Seen: event.Seen}:
	default:
	}
	return nil
}

// among makes an event of one resource what it means for an object that may be stored under another name too.
func among(ctx context.Context, s *source, event datastore.Event) (datastore.Event, error) {
	it, err := s.look(ctx, event.Key)
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return event, nil
	case err != nil:
		return event, err
	case event.Type == datastore.Deleted:
		event.Type = datastore.Modified
	}
	event.Object = it.object
	return event, nil
}

// convert makes an Event of what the server tells; false if it is nothing to us. A resource that cannot be read counts as
// absent, as in List, and so does one that is marked as deleted.
func (w *watcher) convert(s *source, e watch.Event) (datastore.Event, bool) {
	if e.Type == watch.Bookmark {
		return datastore.Event{}, false
	}
	it, err := s.read(e.Object)
	if err != nil {
		w.c.unreadable(s, e.Object, err)
		kind, _ := api.LookupKind(w.kind)
		it.object, it.ended = bare(kind, it.key), e.Type != watch.Deleted
	}
	event := datastore.Event{Key: it.key, Object: it.object}
	if it.object == nil || it.key.Name == "" {
		return event, false
	}
	switch e.Type {
	case watch.Added:
		event.Type = datastore.Added
		return event, !it.ended
	case watch.Modified:
		event.Type = datastore.Modified
		if it.ended {
			event.Type = datastore.Deleted
		}
		return event, true
	case watch.Deleted:
		event.Type = datastore.Deleted
		return event, !it.ended // it was told when it was marked
	}
	return event, false
}

// bare returns an object that has nothing but its key.
func bare(kind api.Kind, key api.Key) api.Object {
	o := kind.New()
	o.SetNamespace(key.Namespace)
	o.SetName(key.Name)
	return o
}
