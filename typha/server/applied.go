package server

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/intake"
	"github.com/muslin-net/muslin/typha/views"
)

const (
	// appliedPause gathers acknowledgements of many clients before all clients are looked at.
	appliedPause = 10 * time.Millisecond
	// appliedAgain is how often all are looked at while a pool is on its way, if nobody says anything.
	appliedAgain = 50 * time.Millisecond
	// lostPatience is how long a node whose connection broke counts as one that has not applied anything: it goes on with
	// what it has, and is back in a moment.
	lostPatience = 5 * time.Second
	// startPatience is the same for all nodes after the start: that is how long they may take to come back.
	startPatience = 10 * time.Second
)

// applied watches for the moment when all connected nodes have applied what was said of a pool that changes its mode.
type applied struct {
	tell     func(ctx context.Context, pool string, stage uint64) error
	intake   Intake
	cache    *cache.Cache
	sessions *registry
	alone    func() bool // there is no other replica
	log      *slog.Logger
	begin    time.Time
	news     chan struct{} // has room for one

	mu     sync.Mutex        // guards moving
	moving map[string]uint64 // pools that are on their way, and their stage
}

func newApplied(cfg Config, sessions *registry, alone func() bool, log *slog.Logger) *applied {
	return &applied{
		tell: cfg.Applied, intake: cfg.Intake, cache: cfg.Cache, sessions: sessions, alone: alone, log: log, begin: time.Now(),
		news: make(chan struct{}, 1), moving: map[string]uint64{},
	}
}

// carried notes how far a pool is.
func (a *applied) carried(c intake.Carriage) {
	a.mu.Lock()
	if c.Moving {
		a.moving[c.Pool] = c.Stage
	} else {
		delete(a.moving, c.Pool)
	}
	a.mu.Unlock()
	a.look()
}

// look has all clients looked at.
func (a *applied) look() {
	select {
	case a.news <- struct{}{}:
	default:
	}
}

func (a *applied) run(ctx context.Context) error {
	if a.tell == nil {
		return nil
	}
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
		a.mu.Lock()
		moving := maps.Clone(a.moving)
		a.mu.Unlock()
		again = nil
		if len(moving) > 0 {
			again = time.After(appliedAgain)
			a.tellReady(ctx, moving)
		}
	}
}

// tellReady tells of the pools that all clients have applied.
func (a *applied) tellReady(ctx context.Context, pools map[string]uint64) {
	if !a.alone() {
		return
	}
	if a.ready(pools); len(pools) == 0 {
		return
	}
	// A step that was committed just now may not have woken all clients yet. After this it has, and those with something
	// to take do not pass.
	if a.intake.Wake(ctx) != nil {
		return // ctx has ended
	}
	a.ready(pools)
	for p, stage := range pools {
		if err := a.tell(ctx, p, stage); err != nil && ctx.Err() == nil {
			a.log.Warn("a change of mode does not go on before its time", "pool", p, "error", err)
		}
	}
}

// ready leaves the pools of which no client has anything to take or to apply.
func (a *applied) ready(pools map[string]uint64) {
	if a.sessions.lost(lostPatience) || time.Since(a.begin) < startPatience && a.awaited() {
		clear(pools)
		return
	}
	for _, s := range a.sessions.all() {
		if s.scope.View == views.NodeView {
			maps.DeleteFunc(pools, func(p string, _ uint64) bool { return s.owes(p) })
		}
	}
}

// awaited tells whether nodes of the cluster are not here, or not here yet.
func (a *applied) awaited() bool {
	here := map[string]bool{}
	for _, n := range a.sessions.nodes() {
		here[n] = true
	}
	for n := range a.cache.Snapshot().Nodes() {
		if !here[n.Name] {
			return true
		}
	}
	return false
}

// routed notes which pools have routes in a batch that is about to be sent, and whether it has addresses of nodes, which
// all tunnels depend on. The caller holds mu.
func (s *session) routed(batch uint64, entries []*views.Entry) {
	for _, e := range entries {
		switch e.Key.Kind { // an item that does not count need not be made
		case view.KindNode:
			s.nodes = batch
		case view.KindRoute:
			if route, ok := e.Item().(view.Route); ok && route.Pool != "" {
				s.routes[route.Pool] = batch
			}
		}
	}
}

// owes tells whether the client has routes of a pool, or addresses of nodes, to take or to apply. Before it has applied its first batch nobody
// knows: what it said to have when it came it may still be busy with.
func (s *session) owes(pool string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, sent := s.routes[pool]
	return sent || s.nodes > s.status.Applied || s.dirty || s.taking || s.status.Applied == 0
}

// settled forgets the pools whose routes the client has applied by now. The caller holds mu.
func (s *session) settled() {
	for pool, batch := range s.routes {
		if batch <= s.status.Applied {
			delete(s.routes, pool)
		}
	}
}
