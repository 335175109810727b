package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
)

const eventBuffer = 128 // events decoded ahead of the consumer

// slowAfter is how long a consumer may take nothing until its watch is suspended.
const slowAfter = 500 * time.Millisecond

// errSuspended ends a session whose consumer is slow: etcd's client would buffer without bound.
var errSuspended = errors.New("the consumer is slow")

// watcher is one watch: a row of sessions with etcd, each taking over where the one before ended.
type watcher struct {
	c          *Client
	kind       api.Kind
	key        api.Key // of errors: the kind and namespace
	start, end string

	revision atomic.Int64  // all changes up to here have been delivered
	cluster  atomic.Uint64 // etcd's cluster id, 0 until known
	estray   chan error    // why it cannot go on from where it is, as the patrol found
	idle     chan idle     // what the patrol found out for a server that does not tell progress exactly

	ctx    context.Context
	cancel context.CancelFunc
	events chan datastore.Event
	err    error // guarded by the closing of events
}

// Watch streams the changes of a kind after a revision. See datastore.Reader.
func (c *Client) Watch(ctx context.Context, kind string, opts datastore.WatchOptions) (datastore.Watcher, error) {
	key := api.Key{Kind: kind, Namespace: opts.Namespace, Name: "*"}
	fail := func(err error) (datastore.Watcher, error) {
		return nil, &datastore.Error{Op: opWatch, Key: key, Err: err}
	}
	k, ok := api.LookupKind(kind)
	if !ok {
		return fail(unknownKind(kind))
	}
	w := &watcher{c: c, kind: k, key: key, estray: make(chan error, 1), idle: make(chan idle, 1), events: make(chan datastore.Event, eventBuffer)}
	w.start, w.end = rangeOf(k, opts.Namespace, "")
	var from int64
	var err error
	if opts.Revision != "" {
		from, err = parseRevision(opts.Revision)
	} else { // the start is fixed now: a connection that breaks before the first event must not lose what happens meanwhile
		from, err = w.currentRevision(ctx)
	}
	if err != nil {
		return fail(err)
	}
	w.revision.Store(from)
	w.ctx, w.cancel = context.WithCancel(ctx)
	if !c.begin(w) {
		w.cancel()
		return fail(errClosed)
	}
	return w, nil
}

// begin starts the watch's goroutine, unless the client is closed.
func (c *Client) begin(w *watcher) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.watchers[w] = struct{}{}
	stop := context.AfterFunc(c.ctx, w.cancel)
	c.tasks.Go(func() {
		defer c.end(w)
		defer close(w.events)
		defer w.cancel()
		defer stop()
		w.err = w.run()
	})
	return true
}

func (c *Client) end(w *watcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.watchers, w)
}

// Events returns the stream; it is closed when the watch ends.
func (w *watcher) Events() <-chan datastore.Event { return w.events }

// Err tells why the watch ended. It is meaningful once Events is closed.
func (w *watcher) Err() error { return w.err }

// Stop ends the watch.
func (w *watcher) Stop() { w.cancel() }

// run holds session after session until the watch must end, and returns why.
func (w *watcher) run() error {
	retry := backoff.Backoff{Min: 50 * time.Millisecond, Max: 5 * time.Second}
	for {
		progress := w.revision.Load()
		err := w.session()
		switch {
		case w.c.ctx.Err() != nil:
			return &datastore.Error{Op: opWatch, Key: w.key, Err: errClosed}
		case w.ctx.Err() != nil:
			return nil
		case errors.Is(err, datastore.ErrCompacted):
			return err
		case isRefused(err):
			return &datastore.Error{Op: opWatch, Key: w.key, Err: w.c.advise(err)}
		case errors.Is(err, errSuspended):
			continue
		}
		if w.revision.Load() > progress {
			retry.Reset()
		}
		w.c.log.Debug("etcd watch interrupted, resuming", "kind", w.kind.Name, "revision", w.revision.Load(), "error", err)
		if retry.Wait(w.ctx) != nil && w.c.ctx.Err() == nil {
			return nil
		}
	}
}

// isRefused tells whether etcd answered that this client may not watch; trying again would not help.
func isRefused(err error) bool {
	return isAnswer(err, rpctypes.ErrPermissionDenied) || isAnswer(err, rpctypes.ErrUserEmpty) || isAnswer(err, rpctypes.ErrAuthFailed)
}

// session watches until something ends it, and returns what.
func (w *watcher) session() error {
	conn, err := w.c.connect(w.ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(w.ctx))
	defer cancel()
	responses := conn.Watch(ctx, w.start, clientv3.WithRange(w.end), clientv3.WithRev(w.revision.Load()+1),
		clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for {
		select {
		case resp, ok := <-responses:
			if !ok {
				return errors.New("etcd ended the watch without a reason")
			}
			if err := w.take(resp, cancel); err != nil {
				return err
			}
		case i := <-w.idle:
			if err := w.takeIdle(i); err != nil {
				return err
			}
		case err := <-w.estray:
			return err
		}
	}
}

// take deals with one response. An error ends the session.
func (w *watcher) take(resp clientv3.WatchResponse, suspend context.CancelFunc) error {
	if err := resp.Err(); err != nil {
		if resp.CompactRevision != 0 || errors.Is(err, rpctypes.ErrCompacted) {
			return w.compacted(fmt.Sprintf("changes after revision %d are gone, the oldest held is %d; list again", w.revision.Load(), resp.CompactRevision))
		}
		return err
	}
	if err := w.checkLineage(&resp.Header); err != nil {
		return err
	}
	switch {
	case len(resp.Events) > 0:
		return w.deliver(resp.Events, suspend)
	case resp.IsProgressNotify():
		return w.tell(resp.Header.Revision)
	}
	return nil
}

// deliver sends the events of one response, which ends at a revision's border, and then moves the revision on.
func (w *watcher) deliver(events []*clientv3.Event, suspend context.CancelFunc) error {
	slow := false
	for _, e := range events {
		event, ok := w.convert(e)
		if !ok {
			continue
		}
		late, err := w.send(event, suspend)
		if err != nil {
			return err
		}
		slow = slow || late
	}
	w.revision.Store(events[len(events)-1].Kv.ModRevision)
	if slow {
		return errSuspended
	}
	return nil
}

// send gives one event to the consumer. When he is slow it suspends the session, waits for him, and reports true.
func (w *watcher) send(e datastore.Event, suspend context.CancelFunc) (slow bool, err error) {
	select {
	case w.events <- e:
		return false, nil
	default:
	}
	patience := time.NewTimer(w.c.slowAfter)
	defer patience.Stop()
	for {
		select {
		case w.events <- e:
			return slow, nil
		case <-w.ctx.Done():
			return slow, w.ctx.Err()
		case <-patience.C:
			slow = true
			suspend()
		}
	}
}

// tell sends a Bookmark if the revision is news. A consumer without room for it does without: another one will come.
func (w *watcher) tell(revision int64) error {
	if revision <= w.revision.Load() {
		return nil
	}
	select {
	case w.events <- datastore.Event{Type: datastore.Bookmark, Revision: strconv.FormatInt(revision, 10)}:
		w.revision.Store(revision)
	case <-w.ctx.Done():
		return w.ctx.Err()
	default:
	}
	return nil
}

// convert makes an Event of what etcd reports; false for keys that are no objects. A value that cannot be decoded counts
// as absent, as in List: the object is reported deleted.
func (w *watcher) convert(e *clientv3.Event) (datastore.Event, bool) {
	key, ok := keyOf(w.kind, string(e.Kv.Key))
	if !ok {
		return datastore.Event{}, false
	}
	event := datastore.Event{Key: key, Revision: strconv.FormatInt(e.Kv.ModRevision, 10)}
	if e.Type == clientv3.EventTypePut {
		o, err := decode(w.kind, key, e.Kv)
		if err == nil {
			event.Object, event.Type = o, datastore.Modified
			if e.IsCreate() {
				event.Type = datastore.Added
			}
			return event, true
		}
		w.c.undecodable(string(e.Kv.Key), err)
		if e.IsCreate() {
			return datastore.Event{}, false
		}
	}
	var previous []*mvccpb.KeyValue
	if e.PrevKv != nil {
		previous = append(previous, e.PrevKv)
	}
	event.Type, event.Object = datastore.Deleted, w.c.lastState(w.kind, key, previous)
	return event, true
}

func (w *watcher) compacted(why string) error {
	return &datastore.Error{Op: opWatch, Key: w.key, Reason: datastore.ErrCompacted, Err: errors.New(why)}
}

// currentRevision is the cluster's revision now.
func (w *watcher) currentRevision(ctx context.Context) (int64, error) {
	header, err := w.header(ctx)
	if err != nil {
		return 0, err
	}
	return header.Revision, nil
}
