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

	mu     sync.Mutex        // guards the next three
	stage  uint64            // numbers the stages of all changes of mode
	stages map[string]uint64 // pools that are on their way, and their stage
	over   map[string]uint64 // pools with the stage that is over

	modes  *compute.Modes // of the loop alone, as are those below
	timers map[string]*time.Timer
	synced bool
}

// NewLoop ties the stages together. It becomes the only user of the engine, and the only one to commit to the store.
func NewLoop(in *Intake, engine *compute.Engine, store *views.Store) *Loop {
	return &Loop{
		intake: in, engine: engine, store: store,
		stages: map[string]uint64{}, over: map[string]uint64{},
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
	for _, pool := range l.due() {
		now, moving := l.modes.Advance(pool)
		l.carry(ctx, pool, now, moving)
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

// due returns the pools whose present stage is over.
func (l *Loop) due() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var pools []string
	for pool, stage := range l.over {
		if now, moving := l.stages[pool]; moving && now == stage {
			pools = append(pools, pool)
		}
	}
	clear(l.over)
	return pools
}

// carry tells the computation how packets of a pool are carried, and sees to it that the next step is taken.
func (l *Loop) carry(ctx context.Context, pool string, now compute.Transport, moving bool) {
	if t := l.timers[pool]; t != nil {
		t.Stop()
		delete(l.timers, pool)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !moving {
		delete(l.stages, pool)
		l.engine.SetTransport(pool, nil)
		return
	}
	l.stage++
	stage := l.stage
	l.stages[pool] = stage
	l.engine.SetTransport(pool, &now)
	l.timers[pool] = time.AfterFunc(modeStep, func() { _ = l.end(ctx, pool, stage) }) // fails only when ctx has ended
}

// end notes that a stage of a pool's change of mode is over, and has the loop look.
func (l *Loop) end(ctx context.Context, pool string, stage uint64) error {
	l.mu.Lock()
	l.over[pool] = max(l.over[pool], stage)
	l.mu.Unlock()
	return l.intake.Wake(ctx)
}

// Applied says that all connected nodes have applied what the views say of a pool's transport, so that its change of
// mode can go on before its time.
func (l *Loop) Applied(ctx context.Context, pool string) error {
	l.mu.Lock()
	stage, moving := l.stages[pool]
	l.mu.Unlock()
	if !moving {
		return nil
	}
	return l.end(ctx, pool, stage)
}
