// Package leader has one of several processes work while the others stand by, by a Lease in the datastore, whichever that
// is. It owns the Lease; it refuses to know what the work is.
//
// Clocks are never compared. The holder renews the lease, and counts its time from before the write; it takes itself for the
// leader for two thirds of the lease. The others count from when they first saw a renewal, which is later, and take over
// only after the whole of it. So as long as a process does what it is told in time, there is one leader at most.
//
// A process may be frozen at any place, and go on later as if nothing had been: also between looking at its lease and
// writing. Guard is for that. It looks at the lease before each write, and lets nothing pass that is not a compare and swap:
// what the frozen one writes then is what it decided on a state that nobody has touched since, or it fails. Whoever decides
// by what is stored, and writes it into one object, can do no harm so.
package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
)

// ErrNotLeader is what Guard answers while another process leads, or nobody.
var ErrNotLeader = errors.New("this process does not lead")

// giveBack bounds the attempt to give the lease back at the end.
const giveBack = 2 * time.Second

// Config says who leads what.
type Config struct {
	Store    datastore.Client
	Name     string        // of the Lease
	Identity string        // of this process, unlike all others
	Lease    time.Duration // how long a leader may be silent; whole seconds
	Retry    time.Duration // how often the lease is looked at, or renewed; well below Lease
	Log      *slog.Logger
	// Trouble, if set, is told each failure to reach the lease, and nil once it is reached. Health reads it.
	Trouble func(error)
	// Now is a clock that goes on steadily; nil means the time since boot. It is for tests.
	Now func() time.Duration
}

// Leader takes part in an election.
type Leader struct {
	cfg   Config
	until atomic.Int64 // by Now: the end of the time for which this process leads

	// What was seen last, and when first. Run's alone.
	seen  api.LeaseSpec
	since time.Duration
	saw   bool
}

// New returns a Leader that does not lead.
func New(cfg Config) *Leader {
	if cfg.Now == nil {
		cfg.Now = sinceBoot
	}
	if cfg.Trouble == nil {
		cfg.Trouble = func(error) {}
	}
	return &Leader{cfg: cfg}
}

// Held tells whether this process leads now.
func (l *Leader) Held() bool { return int64(l.cfg.Now()) < l.until.Load() }

// Run waits until this process leads, calls work, and waits again when it leads no more, until ctx ends. work's context ends
// with the leadership; the lease is given back when work has returned. An error of work that is not the end of its context
// ends Run.
func (l *Leader) Run(ctx context.Context, work func(context.Context) error) error {
	for ctx.Err() == nil {
		held, err := l.acquire(ctx)
		l.cfg.Trouble(err)
		if err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn("cannot look at the lease, trying again", "lease", l.cfg.Name, "error", err)
		}
		if held != nil {
			if err := l.lead(ctx, held, work); err != nil {
				return err
			}
		}
		_ = backoff.Pause(ctx, l.cfg.Retry)
	}
	return nil
}

// acquire takes the lease if it is nobody's. It returns nil if it is somebody's.
func (l *Leader) acquire(ctx context.Context) (*api.Lease, error) {
	stored, err := l.get(ctx)
	begin := l.cfg.Now()
	if errors.Is(err, datastore.ErrNotFound) {
		fresh := &api.Lease{}
		fresh.Name = l.cfg.Name
		o, err := l.cfg.Store.Create(ctx, l.ours(fresh))
		if errors.Is(err, datastore.ErrExists) {
			return nil, nil
		}
		return l.took(o, begin, err)
	}
	if err != nil {
		return nil, err
	}
	if !l.saw || l.seen != stored.Spec {
		l.seen, l.since, l.saw = stored.Spec, begin, true
	}
	if stored.Spec.Holder != "" && begin-l.since < time.Duration(stored.Spec.Seconds)*time.Second {
		return nil, nil
	}
	o, err := l.cfg.Store.Update(ctx, l.ours(stored))
	if errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrNotFound) {
		return nil, nil // somebody was faster
	}
	return l.took(o, begin, err)
}

func (l *Leader) get(ctx context.Context) (*api.Lease, error) {
	o, err := l.cfg.Store.Get(ctx, api.Key{Kind: "Lease", Name: l.cfg.Name})
	if err != nil {
		return nil, err
	}
	return o.(*api.Lease), nil
}

// ours is the lease as this process holds it.
func (l *Leader) ours(from *api.Lease) *api.Lease {
	out := from.DeepCopy()
	if out.Spec.Holder != l.cfg.Identity {
		out.Spec.Holder, out.Spec.Renewals = l.cfg.Identity, 0
		out.Spec.Term++
	}
	out.Spec.Renewals++
	out.Spec.Seconds = int32(l.cfg.Lease / time.Second)
	return out
}

func (l *Leader) took(o api.Object, begin time.Duration, err error) (*api.Lease, error) {
	if err != nil {
		return nil, err
	}
	l.until.Store(int64(begin + l.cfg.Lease*2/3))
	return o.(*api.Lease), nil
}

// lead works, and renews the lease, until it is lost or ctx ends.
func (l *Leader) lead(ctx context.Context, held *api.Lease, work func(context.Context) error) error {
	l.cfg.Log.Info("leading", "lease", l.cfg.Name, "term", held.Spec.Term)
	working, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- work(working) }()
	end := func() error {
		stop()
		err := <-done
		l.until.Store(0)
		if err != nil && (working.Err() == nil || !errors.Is(err, context.Canceled)) && !errors.Is(err, ErrNotLeader) {
			return fmt.Errorf("leading: %w", err)
		}
		return nil
	}
	renew := time.NewTicker(l.cfg.Retry)
	defer renew.Stop()
	for {
		select {
		case err := <-done:
			done <- err
			err = end()
			l.release(ctx, held)
			return err
		case <-ctx.Done():
			err := end()
			l.release(ctx, held)
			return err
		case <-renew.C:
		}
		next, err := l.renew(working, held)
		l.cfg.Trouble(err)
		switch {
		case next != nil:
			held = next
		case err == nil || !l.Held():
			l.cfg.Log.Warn("not leading any more", "lease", l.cfg.Name, "error", err)
			return end()
		}
	}
}

// renew returns the lease anew, nil if it is another's, and an error if nobody knows.
func (l *Leader) renew(ctx context.Context, held *api.Lease) (*api.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Lease/3)
	defer cancel()
	begin := l.cfg.Now()
	o, err := l.cfg.Store.Update(ctx, l.ours(held))
	if !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrNotFound) {
		return l.took(o, begin, err)
	}
	// Perhaps it was our own write whose answer got lost.
	stored, err := l.get(ctx)
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case stored.Spec.Holder != l.cfg.Identity:
		return nil, nil
	}
	return stored, nil
}

// release gives the lease back, so that nobody has to wait.
func (l *Leader) release(ctx context.Context, held *api.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBack)
	defer cancel()
	free := held.DeepCopy()
	free.Spec.Holder = ""
	if _, err := l.cfg.Store.Update(ctx, free); err != nil {
		l.cfg.Log.Info("the lease is not given back; it ends by itself", "lease", l.cfg.Name, "error", err)
	}
}

// Guard returns the datastore for those who work while this process leads: what they write is refused otherwise, and what
// they replace or delete has to be what they have seen.
func (l *Leader) Guard() datastore.Client { return guarded{Client: l.cfg.Store, leader: l} }

type guarded struct {
	datastore.Client
	leader *Leader
}

func (g guarded) check(op string, key api.Key, revision string) error {
	switch {
	case !g.leader.Held():
		return &datastore.Error{Op: op, Key: key, Err: ErrNotLeader}
	case revision == "":
		return &datastore.Error{Op: op, Key: key, Err: errors.New("a leader's write names the revision that it has seen")}
	}
	return nil
}

// Create is a compare and swap by itself.
func (g guarded) Create(ctx context.Context, o api.Object) (api.Object, error) {
	if err := g.check("create", api.KeyOf(o), "none"); err != nil {
		return nil, err
	}
	return g.Client.Create(ctx, o)
}

func (g guarded) Update(ctx context.Context, o api.Object) (api.Object, error) {
	if err := g.check("update", api.KeyOf(o), o.GetResourceVersion()); err != nil {
		return nil, err
	}
	return g.Client.Update(ctx, o)
}

func (g guarded) Delete(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	if err := g.check("delete", key, pre.Revision); err != nil {
		return nil, err
	}
	return g.Client.Delete(ctx, key, pre)
}
