package intake

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

const (
	// modeStep is how long a step of a pool's change of mode is waited for when not all nodes report that they have taken it.
	modeStep = 5 * time.Second
	// firstStep is the same for a change that typha meets at its start: nodes may take 10 s to connect again.
	firstStep = 15 * time.Second
	// heldStep is how long a step that is due is held when the Observer does not let it be taken, and heldLook how often
	// the Observer is asked again.
	heldStep = 30 * time.Second
	heldLook = 100 * time.Millisecond
)

// Observer is told what the loop does, and has a say in when pools change how packets to them are carried. The loop calls
// it from its one goroutine; it must not wait.
type Observer interface {
	// Changed tells of changes that views have by now.
	Changed(changes []cache.Change)
	// Carried tells how packets to a pool are carried from now on.
	Carried(Carriage)
	// MayCarry tells whether a pool may go from one way to the next: what the next step needs is known to all, and what a
	// typha must know that goes on from there is stored.
	MayCarry(pool string, now, next compute.Transport) bool
}

// Carriage is how packets to a pool are carried.
type Carriage struct {
	Pool   string
	Now    compute.Transport // nodes receive in no way if the pool is gone
	Moving bool              // on its way to another mode
	Stage  uint64            // numbers the stages of all changes of mode; for Applied
}

// Loop is the one flow of state through typha: intake to cache to computation to views. Nothing else writes any of them.
type Loop struct {
	intake   *Intake
	engine   *compute.Engine
	store    *views.Store
	observer Observer

	mu     sync.Mutex        // guards the next three
	stage  uint64            // numbers the stages of all changes of mode
	stages map[string]uint64 // pools that are on their way, and their stage
	over   map[string]uint64 // pools with the stage that is over

	modes  *compute.Modes // of the loop alone, as are those below
	timers map[string]*time.Timer
	held   map[string]time.Time // pools whose step is due and not taken, and since when
	synced bool
	wanted []compute.SecretRef // secrets that are looked up
	known  bool                // those of the start have been
}

// NewLoop ties the stages together. It becomes the only user of the engine, and the only one to commit to the store.
func NewLoop(in *Intake, engine *compute.Engine, store *views.Store) *Loop {
	return &Loop{
		intake: in, engine: engine, store: store, observer: nobody{},
		stages: map[string]uint64{}, over: map[string]uint64{},
		modes: compute.NewModes(), timers: map[string]*time.Timer{}, held: map[string]time.Time{},
	}
}

// nobody observes nothing and has nothing against anything.
type nobody struct{}

func (nobody) Changed([]cache.Change)                                     {}
func (nobody) Carried(Carriage)                                           {}
func (nobody) MayCarry(string, compute.Transport, compute.Transport) bool { return true }

// Observe has an observer told from now on. It is called before Run.
func (l *Loop) Observe(o Observer) { l.observer = o }

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
	l.applyTold(b)
	for _, c := range b.Changes {
		if c.Key.Kind == "IPPool" {
			l.setPool(ctx, c)
		}
	}
	if b.InSync && !l.synced {
		l.synced = true
		for _, pool := range l.modes.Pools() {
			now, _ := l.modes.Next(pool)
			l.carry(ctx, pool, now, l.modes.Moving(pool), firstStep)
		}
	}
	for _, pool := range l.due() {
		l.advance(ctx, pool)
	}
	// Before everything is there views are given to nobody, and what half of the objects would mean is not of interest.
	if b.InSync && l.lookUp() {
		change := l.engine.Flush()
		for _, w := range l.engine.Warnings() {
			l.intake.log.Warn("a policy has no effect", "what", w)
		}
		change.Checkpoint, change.Floor, change.InSync = b.Checkpoint, b.Floor, true
		l.store.Commit(change)
	}
	l.observer.Changed(b.Changes)
}

// setPool starts a change of mode. Before everything is there no node acts on anything, and what counts is how nodes have
// carried the pool's packets so far: as the pool's status says, or, if it does not, in the pool's mode.
func (l *Loop) setPool(ctx context.Context, c cache.Change) {
	pool, ok := c.Object.(*api.IPPool)
	if !ok || !l.synced {
		l.modes.Forget(c.Key.Name)
	}
	if !ok {
		l.carry(ctx, c.Key.Name, compute.Transport{}, false, 0)
		return
	}
	if left, ok := compute.Recorded(pool); ok && !l.synced {
		l.modes.Set(pool.Name, left)
	}
	if now, moving, news := l.modes.Set(pool.Name, compute.TransportOf(pool)); news && l.synced {
		l.carry(ctx, pool.Name, now, moving, modeStep)
	}
}

// advance takes the next step of a pool, if the observer lets it, or has been asked for long enough.
func (l *Loop) advance(ctx context.Context, pool string) {
	now, next := l.modes.Next(pool)
	since, held := l.held[pool]
	switch may := l.observer.MayCarry(pool, now, next); {
	case may && held:
		// What was lacking nodes may hear of only now: they have to apply it first.
		l.carry(ctx, pool, now, true, modeStep)
		return
	case !may && !held:
		l.held[pool] = time.Now()
		l.lookAgain(ctx, pool)
		return
	case !may && time.Since(since) < heldStep:
		l.lookAgain(ctx, pool)
		return
	case !may:
		l.intake.log.Warn("a change of a pool's mode goes on although not all that it needs is there", "pool", pool, "waited", heldStep)
	}
	now, moving := l.modes.Advance(pool)
	l.carry(ctx, pool, now, moving, modeStep)
}

// lookAgain has a step that is held looked at soon.
func (l *Loop) lookAgain(ctx context.Context, pool string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stage := l.stages[pool]
	l.timers[pool].Stop()
	l.timers[pool] = time.AfterFunc(heldLook, func() { _ = l.end(ctx, pool, stage) })
}

// due returns the pools whose present stage is over. Those that are held are looked at with every batch.
func (l *Loop) due() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	pools := slices.Collect(maps.Keys(l.held))
	for _, pool := range pools {
		delete(l.over, pool)
	}
	for pool, stage := range l.over {
		if now, moving := l.stages[pool]; moving && now == stage {
			pools = append(pools, pool)
		}
	}
	clear(l.over)
	return pools
}

// carry tells the computation how packets of a pool are carried, and sees to it that the next step is taken.
func (l *Loop) carry(ctx context.Context, pool string, now compute.Transport, moving bool, patience time.Duration) {
	if t := l.timers[pool]; t != nil {
		t.Stop()
		delete(l.timers, pool)
	}
	delete(l.held, pool)
	l.mu.Lock()
	defer l.mu.Unlock()
	if moving {
		l.stage++
		stage := l.stage
		l.stages[pool] = stage
		l.engine.SetTransport(pool, &now)
		l.timers[pool] = time.AfterFunc(patience, func() { _ = l.end(ctx, pool, stage) }) // fails only when ctx has ended
	} else {
		delete(l.stages, pool)
		l.engine.SetTransport(pool, nil)
	}
	l.observer.Carried(Carriage{Pool: pool, Now: now, Moving: moving, Stage: l.stage})
}

// end notes that a stage of a pool's change of mode is over, and has the loop look.
func (l *Loop) end(ctx context.Context, pool string, stage uint64) error {
	l.mu.Lock()
	l.over[pool] = max(l.over[pool], stage)
	l.mu.Unlock()
	return l.intake.Wake(ctx)
}

// Applied says that all connected nodes have applied what the views say of a pool's transport since a stage of its change
// of mode, so that the change can go on before its time.
func (l *Loop) Applied(ctx context.Context, pool string, stage uint64) error {
	return l.end(ctx, pool, stage)
}
