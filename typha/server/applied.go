package server

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// appliedPause gathers acknowledgements of many clients before all clients are looked at. appliedPatience is how long a
// pool is looked at again: whoever waits for it does not wait longer.
const (
	appliedPause    = 10 * time.Millisecond
	appliedPatience = 6 * time.Second
)

// applied watches for the moment when all connected nodes have applied the routes of a pool.
type applied struct {
	tell     func(ctx context.Context, pool string) error
	intake   Intake
	sessions *registry
	log      *slog.Logger
	news     chan struct{} // has room for one

	mu    sync.Mutex           // guards pools
	pools map[string]time.Time // to look at, and since when
}

func newApplied(tell func(context.Context, string) error, in Intake, sessions *registry, log *slog.Logger) *applied {
	return &applied{tell: tell, intake: in, sessions: sessions, log: log, news: make(chan struct{}, 1), pools: map[string]time.Time{}}
}

// done notes that one client more has applied what it was sent of these pools, or is gone.
func (a *applied) done(pools []string) {
	if a.tell == nil || len(pools) == 0 {
		return
	}
	now := time.Now()
	a.mu.Lock()
	for _, p := range pools {
		a.pools[p] = now
	}
	a.mu.Unlock()
	select {
	case a.news <- struct{}{}:
	default:
	}
}

func (a *applied) run(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.news:
		case <-again:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(appliedPause):
		}
		again = nil
		if a.look(ctx) {
			again = time.After(5 * appliedPause)
		}
	}
}

// look tells of the pools that all clients have applied, and returns whether others are left to be looked at again.
func (a *applied) look(ctx context.Context) (left bool) {
	a.mu.Lock()
	pools := a.pools
	a.pools = map[string]time.Time{}
	a.mu.Unlock()
	ready := a.ready(pools)
	if len(ready) > 0 {
		// A step that was committed just now may not have woken all clients yet. After this it has, and those with
		// something to take do not pass.
		if a.intake.Wake(ctx) != nil {
			return false // ctx has ended
		}
		ready = a.ready(ready)
	}
	for p := range ready {
		if err := a.tell(ctx, p); err != nil && ctx.Err() == nil {
			a.log.Warn("a change of mode does not go on before its time", "pool", p, "error", err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for p, since := range pools {
		_, told := ready[p]
		if _, newer := a.pools[p]; !told && !newer && time.Since(since) < appliedPatience {
			a.pools[p] = since
		}
	}
	return len(a.pools) > 0
}

// ready returns the pools of which no client has anything to take or to apply.
func (a *applied) ready(pools map[string]time.Time) map[string]time.Time {
	out := maps.Clone(pools)
	for _, s := range a.sessions.all() {
		if s.scope.View == views.NodeView {
			maps.DeleteFunc(out, func(p string, _ time.Time) bool { return s.owes(p) })
		}
	}
	return out
}

// routed notes which pools have routes in a batch that is about to be sent. The caller holds mu.
func (s *session) routed(batch uint64, entries []*views.Entry) {
	for _, e := range entries {
		if r, ok := e.Item.(view.Route); ok && r.Pool != "" {
			s.routes[r.Pool] = batch
		}
	}
}

// owes tells whether the client has routes of a pool to take or to apply.
func (s *session) owes(pool string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, sent := s.routes[pool]
	return sent || s.dirty || s.taking
}

// settled returns the pools whose routes the client has applied by now, and forgets them. The caller holds mu.
func (s *session) settled() []string {
	var done []string
	for pool, batch := range s.routes {
		if batch <= s.status.Applied {
			done = append(done, pool)
			delete(s.routes, pool)
		}
	}
	return done
}

// abandoned returns the pools whose routes a client that is gone has not applied.
func (s *session) abandoned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.routes))
}
