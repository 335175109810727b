package compaction

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/etcd"
)

type fake struct {
	mu   sync.Mutex
	head int64
	down bool
	done []int64
}

func (f *fake) become(head int64, down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head, f.down = head, down
}

func (f *fake) compacted() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.done)
}

func (f *fake) Head(context.Context) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return 0, errors.New("down")
	}
	return f.head, nil
}

func (f *fake) Compact(_ context.Context, revision int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, revision)
	return nil
}

func TestAPeriodIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{head: 10}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, f, time.Minute, slog.New(slog.DiscardHandler)) }()
		period := func() { time.Sleep(time.Minute); synctest.Wait() }
		synctest.Wait()
		require.Empty(t, f.compacted())
		f.become(20, false)
		period()
		require.Equal(t, []int64{10}, f.compacted())
		f.become(20, true)
		period()
		f.become(30, false)
		period()
		require.Equal(t, []int64{10, 20}, f.compacted())
		period()
		require.Equal(t, []int64{10, 20}, f.compacted(), "nothing was written")
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

// TestEtcdForgets compacts a real etcd: what is before is forgotten, what is after is not.
func TestEtcdForgets(t *testing.T) {
	server, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	c, err := etcd.New(t.Context(), etcd.Config{Endpoints: []string{server.Endpoint()}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	tier := &api.Tier{}
	tier.Name = "t"
	tier.Default()
	_, err = c.Create(t.Context(), tier)
	require.NoError(t, err)
	l, err := c.List(t.Context(), "Tier", datastore.ListOptions{})
	require.NoError(t, err)
	for _, name := range []string{"u", "v"} {
		tier.Name = name
		_, err = c.Create(t.Context(), tier)
		require.NoError(t, err)
	}
	head, err := c.Head(t.Context())
	require.NoError(t, err)
	require.NoError(t, c.Compact(t.Context(), head))
	require.NoError(t, c.Compact(t.Context(), head), "it is done already")
	w, err := c.Watch(t.Context(), "Tier", datastore.WatchOptions{Revision: l.Revision})
	if err == nil {
		for range w.Events() {
			t.Fatal("what was forgotten is told")
		}
		err = w.Err()
	}
	require.ErrorIs(t, err, datastore.ErrCompacted)
}
