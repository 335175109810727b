package loop_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

var quiet = slog.New(slog.DiscardHandler)

// counted is a datastore that counts who reads whole kinds, and refuses while it is told to.
type counted struct {
	datastore.Client
	lists   atomic.Int32
	refuses atomic.Bool
}

func (c *counted) List(ctx context.Context, kind string, opts datastore.ListOptions) (datastore.List, error) {
	if c.refuses.Load() {
		return datastore.List{}, errors.New("forbidden")
	}
	c.lists.Add(1)
	return c.Client.List(ctx, kind, opts)
}

// told keeps what was told of trouble.
type told struct {
	mu sync.Mutex // guards by
	by map[string]error
}

func (t *told) tell(kind string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by[kind] = err
}

func (t *told) of(kind string) (err error, ever bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err, ever = t.by[kind]
	return err, ever
}

type world struct {
	*counted
	told
	*loop.Store
}

func newWorld(t *testing.T) *world {
	c, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	w := &world{counted: &counted{Client: datastore.Validating(c)}, told: told{by: map[string]error{}}}
	w.Store = loop.NewStore(w.counted, w.tell, quiet)
	return w
}

func (w *world) pool(t *testing.T, n int) {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: fmt.Sprintf("10.%d.0.0/16", n)}}
	p.Name = fmt.Sprint("pool-", n)
	_, err := w.counted.Create(t.Context(), p)
	require.NoError(t, err)
}

// running is a loop over pools that says how many it sees.
type running struct {
	seen atomic.Int32
	stop func()
}

func (w *world) run(t *testing.T, cfg loop.Config) *running {
	r := &running{}
	r.seen.Store(-1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	cfg.Kinds, cfg.Log = []string{"IPPool"}, quiet
	go func() {
		done <- loop.Run(ctx, w.Store, cfg, func(_ context.Context, all loop.Objects) (time.Duration, error) {
			r.seen.Store(int32(len(all)))
			return 0, nil
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) sees(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return int(r.seen.Load()) == n }, time.Minute, time.Millisecond, "%d", n)
}

// Loops that decide by the same kind have it read once, whoever comes and goes; the last who goes ends it.
func TestAKindIsFollowedOnce(t *testing.T) {
	w := newWorld(t)
	w.pool(t, 1)
	one, two := w.run(t, loop.Config{}), w.run(t, loop.Config{})
	one.sees(t, 1)
	two.sees(t, 1)
	w.pool(t, 2)
	one.sees(t, 2)
	two.sees(t, 2)
	three := w.run(t, loop.Config{})
	three.sees(t, 2)
	one.stop()
	w.pool(t, 3)
	two.sees(t, 3)
	three.sees(t, 3)
	_, err := w.counted.Delete(t.Context(), api.Key{Kind: "IPPool", Name: "pool-1"}, datastore.Precondition{})
	require.NoError(t, err)
	three.sees(t, 2)
	require.EqualValues(t, 1, w.lists.Load())
	two.stop()
	three.stop()
	w.run(t, loop.Config{}).sees(t, 2)
	require.EqualValues(t, 2, w.lists.Load())
}

// Who keeps a part of each object follows alone, and what others see stays whole.
func TestSlimObjectsAreNotShared(t *testing.T) {
	w := newWorld(t)
	w.pool(t, 1)
	whole := make(chan bool, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- loop.Run(ctx, w.Store, loop.Config{Kinds: []string{"IPPool"}, Log: quiet}, func(_ context.Context, all loop.Objects) (time.Duration, error) {
			for p := range loop.Of[*api.IPPool](all) {
				whole <- p.Spec.CIDR != ""
			}
			return 0, nil
		})
	}()
	slim := w.run(t, loop.Config{Slim: map[string]func(api.Object) api.Object{"IPPool": func(o api.Object) api.Object { return &api.IPPool{} }}})
	slim.sees(t, 1)
	require.True(t, <-whole)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.EqualValues(t, 2, w.lists.Load())
}

// A kind that cannot be followed is told of, until it can be, or until nobody wants it any more.
func TestTroubleIsTold(t *testing.T) {
	w := newWorld(t)
	w.refuses.Store(true)
	r := w.run(t, loop.Config{})
	failing := func() bool { err, _ := w.of("IPPool"); return err != nil }
	require.Eventually(t, failing, time.Minute, time.Millisecond)
	w.refuses.Store(false)
	r.sees(t, 0)
	require.Eventually(t, func() bool { return !failing() }, time.Minute, time.Millisecond)
	r.stop()
	w.refuses.Store(true)
	r = w.run(t, loop.Config{})
	require.Eventually(t, failing, time.Minute, time.Millisecond)
	r.stop()
	require.False(t, failing())
	_, ever := w.of("IPPool")
	require.True(t, ever)
}

// A kind that is none ends every loop that wants it.
func TestAnUnknownKindEndsLoops(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		err := loop.Run(t.Context(), w.Store, loop.Config{Kinds: []string{"Nonsense"}, Log: quiet}, nil)
		require.ErrorContains(t, err, "Nonsense")
	}
}
