package leader_test

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
	"github.com/muslin-net/muslin/kube-controllers/leader"
)

func store(t *testing.T) datastore.Client {
	t.Helper()
	c, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return datastore.Validating(c)
}

// clock is one that can stand still, as that of a frozen process seems to.
type clock struct{ behind atomic.Int64 }

var started = time.Now()

func (c *clock) now() time.Duration { return time.Since(started) - time.Duration(c.behind.Load()) }

type member struct {
	*leader.Leader
	clock clock
	stop  context.CancelFunc
	done  chan error
}

// long is a lease that no leader loses on a machine that rests for seconds; one that is given up is free at once.
const long = 30 * time.Second

// join has one more process take part; work may be nil.
func join(t *testing.T, s datastore.Client, name string, lease time.Duration, work func(context.Context) error) *member {
	t.Helper()
	m := &member{done: make(chan error, 1)}
	m.Leader = leader.New(leader.Config{
		Store: s, Name: "test", Identity: name, Lease: lease, Retry: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Now: m.clock.now,
	})
	if work == nil {
		work = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	}
	ctx, stop := context.WithCancel(t.Context())
	m.stop = stop
	go func() { m.done <- m.Run(ctx, work) }()
	t.Cleanup(func() { m.leave(t) })
	return m
}

func (m *member) leave(t *testing.T) {
	t.Helper()
	m.stop()
	require.NoError(t, <-m.done)
	m.done <- nil
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, time.Minute, 10*time.Millisecond, what)
}

// TestOneLeads has many processes come and go: there is never more than one at work.
func TestOneLeads(t *testing.T) {
	s := store(t)
	var working, most, terms atomic.Int32
	work := func(ctx context.Context) error {
		if n := working.Add(1); n > most.Load() {
			most.Store(n)
		}
		terms.Add(1)
		<-ctx.Done()
		working.Add(-1)
		return ctx.Err()
	}
	var all []*member
	for i := range 4 {
		all = append(all, join(t, s, fmt.Sprint("m", i), long, work))
	}
	for range 4 {
		var led *member
		soon(t, "somebody leads", func() bool {
			for _, m := range all {
				if m.Held() {
					led = m
				}
			}
			return led != nil
		})
		led.leave(t)
		require.False(t, led.Held())
	}
	require.Equal(t, int32(1), most.Load())
	require.Equal(t, int32(4), terms.Load())
}

// TestAFrozenLeader: another takes over, and the frozen one, whatever it believes, cannot undo what that one does.
func TestAFrozenLeader(t *testing.T) {
	s := store(t)
	object := &api.GlobalNetworkSet{}
	object.Name = "state"
	created, err := s.Create(t.Context(), object)
	require.NoError(t, err)

	// One that holds the lease and does nothing more: it is frozen, clock and all.
	var once sync.Once
	frozen := make(chan struct{})
	cold := leader.New(leader.Config{
		Store: refusing{s, &once, frozen}, Name: "test", Identity: "cold", Lease: time.Second, Retry: 50 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler), Now: func() time.Duration { return time.Hour },
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cold.Run(ctx, func(ctx context.Context) error { <-ctx.Done(); return nil }) }()
	<-frozen
	require.True(t, cold.Held(), "it believes so")

	warm := join(t, s, "warm", long, nil)
	soon(t, "the other leads", warm.Held)
	seen := created.(*api.GlobalNetworkSet)
	changed := seen.DeepCopy()
	changed.Spec.Nets = []string{"10.0.0.0/8"}
	_, err = warm.Guard().Update(t.Context(), changed)
	require.NoError(t, err)
	stale := seen.DeepCopy()
	stale.Spec.Nets = []string{"192.168.0.0/16"}
	_, err = cold.Guard().Update(t.Context(), stale)
	require.ErrorIs(t, err, datastore.ErrConflict)
	stale.ResourceVersion = ""
	_, err = cold.Guard().Update(t.Context(), stale)
	require.ErrorContains(t, err, "names the revision")
	_, err = cold.Guard().Delete(t.Context(), api.KeyOf(stale), datastore.Precondition{})
	require.ErrorContains(t, err, "names the revision")
	stop()
	require.NoError(t, <-done)
	require.True(t, warm.Held(), "what the cold one gives back is not its own any more")
}

// refusing is a datastore that lets one take the lease, and answers no renewal.
type refusing struct {
	datastore.Client
	once   *sync.Once
	frozen chan struct{}
}

func (r refusing) Update(ctx context.Context, o api.Object) (api.Object, error) {
	if api.KindOf(o).Name != "Lease" {
		return r.Client.Update(ctx, o)
	}
	r.once.Do(func() { close(r.frozen) })
	return nil, datastore.ErrUnavailable
}

// TestALeaderThatCannotRenew stops its work before anyone else begins, and comes back.
func TestALeaderThatCannotRenew(t *testing.T) {
	s := &failing{Client: store(t)}
	stopped := make(chan struct{}, 10)
	m := join(t, s, "one", time.Second, func(ctx context.Context) error {
		<-ctx.Done()
		stopped <- struct{}{}
		return ctx.Err()
	})
	soon(t, "it leads", m.Held)
	s.down.Store(true)
	<-stopped
	require.False(t, m.Held())
	_, err := m.Guard().Create(t.Context(), &api.GlobalNetworkSet{})
	require.ErrorIs(t, err, leader.ErrNotLeader)
	s.down.Store(false)
	soon(t, "it leads again", m.Held)
}

type failing struct {
	datastore.Client
	down atomic.Bool
}

func (f *failing) Get(ctx context.Context, k api.Key) (api.Object, error) {
	if f.down.Load() {
		return nil, datastore.ErrUnavailable
	}
	return f.Client.Get(ctx, k)
}

func (f *failing) Update(ctx context.Context, o api.Object) (api.Object, error) {
	if f.down.Load() {
		return nil, datastore.ErrUnavailable
	}
	return f.Client.Update(ctx, o)
}

// TestAnErrorOfTheWorkEndsAll, and the lease is free at once.
func TestAnErrorOfTheWorkEndsAll(t *testing.T) {
	s := store(t)
	l := leader.New(leader.Config{
		Store: s, Name: "test", Identity: "one", Lease: time.Minute, Retry: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	err := l.Run(t.Context(), func(context.Context) error { return errors.New("the bridge is out") })
	require.EqualError(t, err, "leading: the bridge is out")
	next := join(t, s, "two", long, nil)
	soon(t, "another leads", next.Held)
}
