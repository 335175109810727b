package conformance

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// testWatchBookmarks keeps a watch idle while something else is written: it must be told how far it is.
func testWatchBookmarks(t *testing.T, s Subject) {
	if s.Bookmarks == 0 {
		t.Log("this backend promises no bookmarks")
		return
	}
	c := s.Client
	w := watch(t, c, namespacedKind, datastore.WatchOptions{Revision: revision(t, c)})
	o := create(t, c, object("elsewhere"))
	timeout := time.After(s.Bookmarks + patience)
	for {
		select {
		case e, ok := <-w.Events():
			require.True(t, ok, "the watch ended: %v", w.Err())
			require.Equal(t, datastore.Bookmark, e.Type)
			require.Nil(t, e.Object)
			if number(t, e.Revision) >= number(t, o.GetResourceVersion()) {
				return
			}
		case <-timeout:
			require.FailNow(t, "no bookmark came")
		}
	}
}

// testWatchCompaction checks that history that is gone is said to be gone, and that watches that need none go on.
func testWatchCompaction(t *testing.T, s Subject) {
	if s.Compact == nil {
		t.Log("this backend cannot be compacted")
		return
	}
	c, ctx := s.Client, deadline(t)
	old := create(t, c, object("a")).GetResourceVersion()
	running := watch(t, c, clusterKind, datastore.WatchOptions{Revision: old})
	for n := 1; n <= 5; n++ {
		require.NoError(t, bump(ctx, c, key("a"), n))
		expect(t, running, datastore.Modified, key("a"), n)
	}
	s.Compact(t)
	require.NoError(t, bump(ctx, c, key("a"), 6))
	expect(t, running, datastore.Modified, key("a"), 6)

	late, err := c.Watch(ctx, clusterKind, datastore.WatchOptions{Revision: old})
	if err == nil {
		err = ended(t, late)
	}
	require.ErrorIs(t, err, datastore.ErrCompacted)
	l, err := c.List(ctx, clusterKind, datastore.ListOptions{})
	require.NoError(t, err)
	require.Len(t, l.Items, 1)
}

// testWatchRestart restarts the server under running watches and writers.
func testWatchRestart(t *testing.T, s Subject) {
	if s.Restart == nil || s.Forgets {
		t.Log("watches of this backend do not outlive a restart of its server, or there is none; following it does")
		return
	}
	c := s.Client
	idle := watch(t, c, namespacedKind, datastore.WatchOptions{})
	var check []func()
	churning(t, c, func() {
		for range 2 {
			check = append(check, follow(t, c))
			s.Restart(t)
			settle(t, c)
		}
		check = append(check, follow(t, c))
	})
	for _, c := range check {
		c()
	}
	create(t, c, namespaced("shop", "late"))
	require.Equal(t, "late", next(t, idle).Key.Name)
}

// settle waits until the datastore takes writes.
func settle(t *testing.T, c datastore.Client) {
	t.Helper()
	require.Eventually(t, func() bool { return c.Ready(t.Context()) == nil }, patience, 20*time.Millisecond)
}

// testFollow lets Follow keep a copy through churn, restarts and compactions, and compares it with the datastore.
func testFollow(t *testing.T, s Subject) {
	c := s.Client
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex // guards the following
	have := map[api.Key]string{}
	inSync := 0
	returned := make(chan error, 1)
	go func() {
		returned <- datastore.Follow(ctx, c, clusterKind, datastore.FollowOptions{}, func(d datastore.Delta[*api.GlobalNetworkSet]) error {
			mu.Lock()
			defer mu.Unlock()
			for _, ch := range d.Changes {
				switch _, known := have[ch.Key]; {
				case ch.Type == datastore.Deleted && known:
					delete(have, ch.Key)
				case ch.Type == datastore.Added && !known, ch.Type == datastore.Modified && known:
					have[ch.Key] = ch.Object.GetResourceVersion()
				default:
					t.Errorf("%v of type %d makes no sense: known %v", ch.Key, ch.Type, known)
				}
			}
			if d.InSync {
				inSync++
			}
			return nil
		})
	}()
	for i := range 2 {
		churning(t, c, func() {
			if s.Restart != nil {
				s.Restart(t)
				settle(t, c)
			}
			if s.Compact != nil {
				s.Compact(t)
			}
			w := watch(t, c, clusterKind, datastore.WatchOptions{})
			for range 50 {
				next(t, w)
			}
		})
		l, err := c.List(deadline(t), clusterKind, datastore.ListOptions{})
		require.NoError(t, err)
		want := replica{}
		want.load(l)
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return maps.Equal(want, have)
		}, patience, 10*time.Millisecond, "round %d", i)
		_, err = c.Delete(deadline(t), key("end"), datastore.Precondition{})
		require.NoError(t, err)
	}
	stop()
	require.ErrorIs(t, <-returned, context.Canceled)
	require.Equal(t, 1, inSync)
}
