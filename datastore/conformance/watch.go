package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func watch(t *testing.T, c datastore.Client, kind string, opts datastore.WatchOptions) datastore.Watcher {
	t.Helper()
	w, err := c.Watch(deadline(t), kind, opts)
	require.NoError(t, err)
	t.Cleanup(w.Stop)
	return w
}

// next returns the next event that is not a Bookmark.
func next(t *testing.T, w datastore.Watcher) datastore.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e, ok := <-w.Events():
			require.True(t, ok, "the watch ended: %v", w.Err())
			if e.Type != datastore.Bookmark {
				return e
			}
		case <-timeout:
			require.FailNow(t, "no event came")
		}
	}
}

// expect reads one event and checks it.
func expect(t *testing.T, w datastore.Watcher, typ datastore.EventType, k api.Key, n int) datastore.Event {
	t.Helper()
	e := next(t, w)
	require.Equal(t, typ, e.Type, "%v", e.Key)
	require.Equal(t, k, e.Key)
	require.NotNil(t, e.Object)
	require.Equal(t, k, api.KeyOf(e.Object))
	require.Equal(t, n, count(e.Object), "%v", e.Key)
	return e
}

// ended reads to the end of a watch and returns why it ended.
func ended(t *testing.T, w datastore.Watcher) error {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case _, ok := <-w.Events():
			if !ok {
				return w.Err()
			}
		case <-timeout:
			require.FailNow(t, "the watch does not end")
		}
	}
}

func revision(t *testing.T, c datastore.Client) string {
	t.Helper()
	l, err := c.List(deadline(t), clusterKind, datastore.ListOptions{})
	require.NoError(t, err)
	return l.Revision
}

func testWatchTypes(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	w := watch(t, c, clusterKind, datastore.WatchOptions{Revision: revision(t, c)})
	o := create(t, c, object("a"))
	e := expect(t, w, datastore.Added, key("a"), 0)
	require.Equal(t, o, e.Object)
	require.Equal(t, o.GetResourceVersion(), e.Revision)

	setCount(o, 7)
	o, err := c.Update(ctx, o)
	require.NoError(t, err)
	require.Equal(t, o, expect(t, w, datastore.Modified, key("a"), 7).Object)

	_, err = c.Delete(ctx, key("a"), datastore.Precondition{})
	require.NoError(t, err)
	e = expect(t, w, datastore.Deleted, key("a"), 7)
	require.Greater(t, number(t, e.Revision), number(t, o.GetResourceVersion()), "the revision is that of the deletion")

	create(t, c, object("a"))
	expect(t, w, datastore.Added, key("a"), 0)
}

func testWatchScope(t *testing.T, s Subject) {
	c := s.Client
	start := revision(t, c)
	all := watch(t, c, namespacedKind, datastore.WatchOptions{Revision: start})
	one := watch(t, c, namespacedKind, datastore.WatchOptions{Revision: start, Namespace: "shop"})
	for _, o := range []api.Object{object("pod"), namespaced("shop-b", "pod"), namespaced("shop", "pod"), namespaced("shop", "pod--1"), namespaced("sho", "pod"), namespaced("shop", "end")} {
		create(t, c, o)
	}
	for _, name := range []string{"shop-b/pod", "shop/pod", "shop/pod--1", "sho/pod", "shop/end"} {
		require.Equal(t, name, names([]api.Object{next(t, all).Object})[0])
	}
	for _, name := range []string{"shop/pod", "shop/pod--1", "shop/end"} {
		require.Equal(t, name, names([]api.Object{next(t, one).Object})[0])
	}
}

func testWatchFromNow(t *testing.T, s Subject) {
	c := s.Client
	create(t, c, object("before"))
	w := watch(t, c, clusterKind, datastore.WatchOptions{})
	create(t, c, object("after"))
	expect(t, w, datastore.Added, key("after"), 0)
}

// testWatchResume stops a watch after each event and goes on from that event's revision.
func testWatchResume(t *testing.T, s Subject) {
	c := s.Client
	from := revision(t, c)
	const n = 4
	for i := range n {
		create(t, c, object(fmt.Sprint("set-", i)))
	}
	for i := range n {
		w := watch(t, c, clusterKind, datastore.WatchOptions{Revision: from})
		from = expect(t, w, datastore.Added, key(fmt.Sprint("set-", i)), 0).Revision
		w.Stop()
	}
}

// replica is a copy of the datastore kept by a watch. It insists that every event makes sense after those before it.
type replica map[api.Key]string

func (r replica) load(l datastore.List) {
	for _, o := range l.Items {
		r[api.KeyOf(o)] = o.GetResourceVersion()
	}
}

func (r replica) apply(e datastore.Event) error {
	_, have := r[e.Key]
	switch e.Type {
	case datastore.Added:
		if have {
			return fmt.Errorf("%v added twice", e.Key)
		}
	case datastore.Modified, datastore.Deleted:
		if !have {
			return fmt.Errorf("%v changed or deleted before it was added", e.Key)
		}
	}
	if e.Type == datastore.Deleted {
		delete(r, e.Key)
	} else if e.Type != datastore.Bookmark {
		r[e.Key] = e.Object.GetResourceVersion()
	}
	return nil
}

// churn writes at random until it is stopped, and tolerates what the other writers and an absent server do to it.
func churn(ctx context.Context, c datastore.Client, keys int, stopped *atomic.Bool) {
	for n := 1; !stopped.Load(); n++ {
		name := fmt.Sprint("churn-", rand.N(keys))
		switch rand.N(4) {
		case 0:
			_, _ = c.Create(ctx, object(name))
		case 1:
			_, _ = c.Delete(ctx, key(name), datastore.Precondition{})
		default:
			_ = bump(ctx, c, key(name), n)
		}
	}
}

// churning runs writers while do runs, and leaves a last object named end.
func churning(t *testing.T, c datastore.Client, do func()) {
	t.Helper()
	// Writers are not canceled: the server may carry a canceled write out, after the last one.
	var stopped atomic.Bool
	var g sync.WaitGroup
	for range 4 {
		g.Go(func() { churn(deadline(t), c, 30, &stopped) })
	}
	do()
	stopped.Store(true)
	g.Wait()
	create(t, c, object("end"))
}

// follow keeps a replica from a list on until the object named end comes, checks each event, and compares the outcome
// with the datastore.
func follow(t *testing.T, c datastore.Client) func() {
	t.Helper()
	l, err := c.List(deadline(t), clusterKind, datastore.ListOptions{})
	require.NoError(t, err)
	have := replica{}
	have.load(l)
	w := watch(t, c, clusterKind, datastore.WatchOptions{Revision: l.Revision})
	done := make(chan error, 1)
	go func() {
		at := l.Revision
		for e := range w.Events() {
			if e.Type != datastore.Bookmark && !later(e.Revision, at) || e.Type == datastore.Bookmark && later(at, e.Revision) {
				done <- fmt.Errorf("revision %s of %v came after %s", e.Revision, e.Key, at)
				return
			}
			at = e.Revision
			if err := have.apply(e); err != nil {
				done <- err
				return
			}
			if e.Key.Name == "end" {
				done <- nil
				return
			}
		}
		done <- fmt.Errorf("the watch ended: %w", errors.Join(w.Err(), context.Cause(t.Context())))
	}()
	return func() {
		t.Helper()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(patience):
			require.FailNow(t, "the last event did not come")
		}
		final, err := c.List(deadline(t), clusterKind, datastore.ListOptions{})
		require.NoError(t, err)
		want := replica{}
		want.load(final)
		require.Equal(t, want, have)
	}
}

// later compares two revisions of equal sign without a testing.T.
func later(a, b string) bool {
	if len(a) != len(b) {
		return len(a) > len(b)
	}
	return a > b
}

func testWatchUnderWriters(t *testing.T, s Subject) {
	var check []func()
	churning(t, s.Client, func() {
		for range 5 {
			check = append(check, follow(t, s.Client))
		}
		// Each watch started at another moment of the churn; give it something to see.
		w := watch(t, s.Client, clusterKind, datastore.WatchOptions{})
		for range 200 {
			next(t, w)
		}
	})
	for _, c := range check {
		c()
	}
}

// testWatchSlowConsumer leaves a watch unread while many changes happen. They must all be there afterwards, once, and
// other watches of the client must not have waited.
func testWatchSlowConsumer(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	start := revision(t, c)
	slow := watch(t, c, clusterKind, datastore.WatchOptions{Revision: start})
	quick := watch(t, c, clusterKind, datastore.WatchOptions{Revision: start})
	create(t, c, object("a"))
	expect(t, quick, datastore.Added, key("a"), 0)
	const n = 400
	for i := 1; i <= n; i++ {
		require.NoError(t, bump(ctx, c, key("a"), i))
		expect(t, quick, datastore.Modified, key("a"), i)
	}
	expect(t, slow, datastore.Added, key("a"), 0)
	for i := 1; i <= n; i++ {
		expect(t, slow, datastore.Modified, key("a"), i)
		if i == n/2 { // changes that come while it catches up
			require.NoError(t, bump(ctx, c, key("a"), n+1))
		}
	}
	expect(t, slow, datastore.Modified, key("a"), n+1)
}

func testWatchEnds(t *testing.T, s Subject) {
	c := s.Client
	ctx, cancel := context.WithCancel(t.Context())
	w, err := c.Watch(ctx, clusterKind, datastore.WatchOptions{})
	require.NoError(t, err)
	cancel()
	require.NoError(t, ended(t, w))

	w = watch(t, c, clusterKind, datastore.WatchOptions{})
	w.Stop()
	w.Stop()
	require.NoError(t, ended(t, w))

	w = watch(t, c, clusterKind, datastore.WatchOptions{})
	for i := range 300 { // nobody reads: closing must not wait for a reader
		create(t, c, object(fmt.Sprint("set-", i)))
	}
	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "closing twice is allowed")
	require.Error(t, ended(t, w), "a closed client is an error of the watch")
	_, err = c.Get(deadline(t), key("a"))
	require.Error(t, err)
	_, err = c.Watch(deadline(t), clusterKind, datastore.WatchOptions{Revision: "1"})
	require.Error(t, err)
}
