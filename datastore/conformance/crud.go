package conformance

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func testLifecycle(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	for _, o := range []api.Object{object("one"), namespaced("shop", "one")} {
		k := api.KeyOf(o)
		created := create(t, c, o)
		require.Empty(t, o.GetResourceVersion(), "the caller's object was changed")
		require.Equal(t, k, api.KeyOf(created))

		got, err := c.Get(ctx, k)
		require.NoError(t, err)
		require.Equal(t, created, got, "create must return what is stored")

		next := got.DeepCopyObject().(api.Object)
		next.SetLabels(map[string]string{"a": "b"})
		updated, err := c.Update(ctx, next)
		require.NoError(t, err)
		require.Greater(t, number(t, updated.GetResourceVersion()), number(t, created.GetResourceVersion()))
		got, err = c.Get(ctx, k)
		require.NoError(t, err)
		require.Equal(t, updated, got, "update must return what is stored")
		require.Equal(t, map[string]string{"a": "b"}, got.GetLabels())
		require.Equal(t, created.GetUID(), got.GetUID())

		removed, err := c.Delete(ctx, k, datastore.Precondition{})
		require.NoError(t, err)
		require.Equal(t, updated, removed, "delete must return the last state")
		_, err = c.Get(ctx, k)
		require.ErrorIs(t, err, datastore.ErrNotFound)
	}
}

func testIdentity(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	before := time.Now().Add(-time.Second).Truncate(time.Second)
	a, b := create(t, c, object("a")), create(t, c, object("b"))
	require.NotEmpty(t, a.GetUID())
	require.NotEqual(t, a.GetUID(), b.GetUID())
	created := a.GetCreationTimestamp()
	require.False(t, created.Before(&metav1.Time{Time: before}), "creationTimestamp %v is before %v", created, before)

	given := object("given")
	given.SetUID("8dbecb55-3103-468d-9448-f47664c2d915")
	given.SetCreationTimestamp(metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)))
	stored := create(t, c, given)
	storedTime, givenTime := stored.GetCreationTimestamp(), given.GetCreationTimestamp()
	if !s.DrawsIdentity {
		require.Equal(t, given.GetUID(), stored.GetUID())
		require.True(t, storedTime.Equal(&givenTime))
	}

	// An update from a document that knows neither keeps both.
	bare := object("a")
	bare.SetResourceVersion(a.GetResourceVersion())
	updated, err := c.Update(ctx, bare)
	require.NoError(t, err)
	require.Equal(t, a.GetUID(), updated.GetUID())
	updatedTime := updated.GetCreationTimestamp()
	require.True(t, created.Equal(&updatedTime))

	_, err = c.Delete(ctx, key("b"), datastore.Precondition{})
	require.NoError(t, err)
	require.NotEqual(t, b.GetUID(), create(t, c, object("b")).GetUID(), "a new object of an old name is another one")
}

func testErrors(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	old := create(t, c, object("here"))
	fresh := old.DeepCopyObject().(api.Object)
	setCount(fresh, 1)
	_, err := c.Update(ctx, fresh)
	require.NoError(t, err)

	gone := object("gone")
	gone.SetResourceVersion(old.GetResourceVersion())
	gone.SetUID("8dbecb55-3103-468d-9448-f47664c2d915")
	noRevision := object("here")

	for _, test := range []struct {
		name string
		do   func() error
		want error
	}{
		{"get missing", func() error { _, err := c.Get(ctx, key("gone")); return err }, datastore.ErrNotFound},
		{"create existing", func() error { _, err := c.Create(ctx, object("here")); return err }, datastore.ErrExists},
		{"update stale", func() error { _, err := c.Update(ctx, old); return err }, datastore.ErrConflict},
		{"update missing", func() error { _, err := c.Update(ctx, gone); return err }, datastore.ErrNotFound},
		{"update without revision", func() error { _, err := c.Update(ctx, noRevision); return err }, datastore.ErrConflict},
		{"delete missing", func() error { _, err := c.Delete(ctx, key("gone"), datastore.Precondition{}); return err }, datastore.ErrNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.do()
			require.ErrorIs(t, err, test.want)
			require.ErrorContains(t, err, clusterKind, "an error names the object")
			var e *datastore.Error
			require.ErrorAs(t, err, &e)
		})
	}
	t.Run("bad keys", func(t *testing.T) {
		for _, k := range []api.Key{
			{Kind: "Nonsense", Name: "a"},
			{Kind: clusterKind},
			{Kind: clusterKind, Namespace: "shop", Name: "a"},
			{Kind: namespacedKind, Name: "a"},
			{Kind: clusterKind, Name: "a/b"},
		} {
			_, err := c.Get(ctx, k)
			require.Error(t, err, "%v", k)
			require.NotErrorIs(t, err, datastore.ErrNotFound, "%v", k)
		}
		_, err := c.List(ctx, "Nonsense", datastore.ListOptions{})
		require.ErrorContains(t, err, "Nonsense")
		_, err = c.Watch(ctx, "Nonsense", datastore.WatchOptions{})
		require.ErrorContains(t, err, "Nonsense")
		_, err = c.Watch(ctx, clusterKind, datastore.WatchOptions{Revision: "yesterday"})
		require.ErrorContains(t, err, "yesterday")
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := c.Get(ctx, key("here"))
		require.ErrorIs(t, err, context.Canceled)
	})
}

func testPreconditions(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	first := create(t, c, object("a"))
	setCount(first, 1)
	second, err := c.Update(ctx, first)
	require.NoError(t, err)
	uid := string(second.GetUID())
	for _, wrong := range []datastore.Precondition{
		{Revision: first.GetResourceVersion()},
		{UID: "another"},
		{Revision: second.GetResourceVersion(), UID: "another"},
		{Revision: first.GetResourceVersion(), UID: uid},
	} {
		_, err := c.Delete(ctx, key("a"), wrong)
		require.ErrorIs(t, err, datastore.ErrConflict, "%+v", wrong)
	}
	for _, right := range []func(o api.Object) datastore.Precondition{
		func(o api.Object) datastore.Precondition {
			return datastore.Precondition{Revision: o.GetResourceVersion()}
		},
		func(o api.Object) datastore.Precondition { return datastore.Precondition{UID: string(o.GetUID())} },
		func(o api.Object) datastore.Precondition {
			return datastore.Precondition{Revision: o.GetResourceVersion(), UID: string(o.GetUID())}
		},
	} {
		o, err := c.Get(ctx, key("a"))
		require.NoError(t, err)
		_, err = c.Delete(ctx, key("a"), right(o))
		require.NoError(t, err)
		create(t, c, object("a"))
	}
}

// testCompareAndSwapRace lets many writers count on one object: no increment may be lost.
func testCompareAndSwapRace(t *testing.T, s Subject) {
	c, ctx := s.Client, deadline(t)
	create(t, c, object("race"))
	const writers, each = 6, 10
	var g errgroup.Group
	for range writers {
		g.Go(func() error {
			for range each {
				for {
					o, err := c.Get(ctx, key("race"))
					if err != nil {
						return err
					}
					setCount(o, count(o)+1)
					if _, err = c.Update(ctx, o); err == nil {
						break
					}
					if !errors.Is(err, datastore.ErrConflict) {
						return err
					}
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	o, err := c.Get(ctx, key("race"))
	require.NoError(t, err)
	require.Equal(t, writers*each, count(o))
}

func testCreateRace(t *testing.T, s Subject) {
	race(t, datastore.ErrExists, func(ctx context.Context) error {
		_, err := s.Client.Create(ctx, object("race"))
		return err
	})
}

func testDeleteRace(t *testing.T, s Subject) {
	o := create(t, s.Client, object("race"))
	race(t, datastore.ErrNotFound, func(ctx context.Context) error {
		_, err := s.Client.Delete(ctx, key("race"), datastore.Precondition{UID: string(o.GetUID())})
		return err
	})
}

// race runs do many times at once: one must succeed, the others must fail with want.
func race(t *testing.T, want error, do func(context.Context) error) {
	t.Helper()
	ctx := deadline(t)
	const racers = 16
	results := make(chan error, racers)
	for range racers {
		go func() { results <- do(ctx) }()
	}
	won := 0
	for range racers {
		if err := <-results; err == nil {
			won++
		} else {
			require.ErrorIs(t, err, want)
		}
	}
	require.Equal(t, 1, won)
}
