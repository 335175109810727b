package intake

import (
	"context"
	"sync"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// modeStep is how long a step of a pool's change of mode is waited for when not all nodes report that they have taken it.
const modeStep = 5 * time.Second

// Loop is the one flow of state through typha: intake to cache to computation to views. Nothing else writes any of them.
type Loop struct {
	intake *Intake
	engine *compute.Engine
	store  *views.Store

	mu     sync.Mutex     // guards steps
	steps  []string       // pools to advance
	modes  *compute.Modes // of the loop alone, as are those below
	timers map[string]*time.Timer
	synced bool
}

// NewLoop ties the stages together. It becomes the only user of the engine, and the only one to commit to the store.
func NewLoop(in *Intake, engine *compute.Engine, store *views.Store) *Loop {
	return &Loop{
		intake: in, engine: engine, store: store,
		modes: compute.NewModes(), timers: map[string]*time.Timer{},
	}
}

// Run lets state flow until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	defer func() {
		for _, t := range l.timers {
			t.Stop()
		}
	}()
	return l.intake.Run(ctx, func(b Batch) error {
		l.step(ctx, b)
		return nil
	})
}

// step takes one batch to the views.
func (l *Loop) step(ctx context.Context, b Batch) {
	l.engine.Apply(b.Changes...)
	for _, c := range b.Changes {
		if c.Key.Kind == "IPPool" {
			l.setPool(ctx, c)
		}
	}
	l.mu.Lock()
	steps := l.steps
	l.steps = nil
	l.mu.Unlock()
	for _, pool := range steps {
		l.advance(ctx, pool)
	}
	// Before everything is there views are given to nobody, and what half of the objects would mean is not of interest.
	if !b.InSync {
		return
	}
	l.synced = true
	change := l.engine.Flush()
	change.Checkpoint, change.Floor, change.InSync = b.Checkpoint, b.Floor, true
	l.store.Commit(change)
}

// setPool starts a change of mode. Before everything is there no node acts on anything, so a mode is taken as it is.
func (l *Loop) setPool(ctx context.Context, c cache.Change) {
	pool, ok := c.Object.(*api.IPPool)
	if !ok || !l.synced {
		l.modes.Forget(c.Key.Name)
		l.carry(ctx, c.Key.Name, compute.Transport{}, false)
	}
	if ok {
		now, moving := l.modes.Set(pool.Name, compute.TransportOf(pool))
		l.carry(ctx, pool.Name, now, moving)
	}
}

// advance takes a pool's change of mode one step further.
func (l *Loop) advance(ctx context.Context, pool string) {
	if now, moving := l.modes.Advance(pool); moving || l.timers[pool] != nil {
		l.carry(ctx, pool, now, moving)
	}
}

// carry tells the computation how packets of a pool are carried, and sees to it that the next step is taken.
func (l *Loop) carry(ctx context.Context, pool string, now compute.Transport, moving bool) {
	if t := l.timers[pool]; t != nil {
		t.Stop()
		delete(l.timers, pool)
	}
	if !moving {
		l.engine.SetTransport(pool, nil)
		return
	}
	l.engine.SetTransport(pool, &now)
	l.timers[pool] = time.AfterFunc(modeStep, func() { _ = l.Applied(ctx, pool) }) // fails only when ctx has ended
}

// Applied says that all connected nodes have applied what the views say of a pool's transport, so that its change of
// mode can go on before its time.
func (l *Loop) Applied(ctx context.Context, pool string) error {
	l.mu.Lock()
	l.steps = append(l.steps, pool)
	l.mu.Unlock()
	return l.intake.Wake(ctx)
}
