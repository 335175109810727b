package server

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/conditions"
)

const (
	// judgeAgain is how long after all pools, or all nodes, were judged they are judged again: what comes from many nodes
	// at once is one change of a pool's status.
	judgeAgain = time.Second
	// nodeWrites is how much time lies between the writes of two nodes' conditions.
	nodeWrites = 20 * time.Millisecond
)

// statuses writes the statuses of pools and tiers, and the conditions of nodes that are not the nodes' own words. What is written is
// a function of what is stored, so that several replicas agree; who comes second has nothing to write.
type statuses struct {
	store   datastore.Client
	cache   *cache.Cache
	intake  Intake
	records *records
	log     *slog.Logger

	synced  bool              // it is known that all is known; owned by who tells of changes, as is the next
	invalid map[api.Key]error // when last looked at
	suspect pendingNodes      // whose conditions may not be right; every for all

	poolNews, nodeNews, tierNews chan struct{} // have room for one
}

func newStatuses(cfg Config, log *slog.Logger) *statuses {
	s := &statuses{
		store: cfg.Datastore, cache: cfg.Cache, intake: cfg.Intake, log: log, suspect: pendingNodes{names: map[string]struct{}{}},
		poolNews: make(chan struct{}, 1), nodeNews: make(chan struct{}, 1), tierNews: make(chan struct{}, 1),
	}
	s.suspect.add(every)
	s.records = newRecords(func() { poke(s.poolNews) })
	return s
}

// every stands for all nodes. No node has it as its name.
const every = ""

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// changed has statuses looked at when something that they depend on has changed.
func (s *statuses) changed(changes []cache.Change) {
	if !s.synced && s.cache.Snapshot().InSync() { // what came before was left for now, and may have been all
		s.synced = true
		poke(s.poolNews)
		poke(s.nodeNews)
		poke(s.tierNews)
	}
	news := false
	for _, c := range changes {
		switch c.Key.Kind {
		case "IPPool":
			s.suspect.add(every)
		case "Node":
			s.suspect.add(c.Key.Name)
		default:
			continue
		}
		news = true
	}
	if news {
		poke(s.poolNews)
		poke(s.nodeNews)
	}
	s.tiersChanged(changes)
}

// runPools keeps the statuses of pools right until ctx ends. What a change of mode waits for is written at once.
func (s *statuses) runPools(ctx context.Context) error {
	var judged time.Time
	return s.follow(ctx, s.poolNews, func(ctx context.Context) (time.Duration, error) {
		snapshot := s.cache.Snapshot()
		if !snapshot.InSync() {
			return 0, nil
		}
		wait := judgeAgain - time.Since(judged)
		if wait <= 0 {
			judged = time.Now()
		}
		pools, nodes := slices.Collect(snapshot.Pools()), slices.Collect(snapshot.Nodes())
		again := max(wait, 0)
		var errs []error
		for _, p := range pools {
			record, urgent, later := s.records.want(p)
			if later {
				again = judgeAgain
			}
			if wait > 0 && !urgent {
				continue
			}
			given := conditions.OfPool(p, pools, nodes)
			change := func(p *api.IPPool) {
				status := api.IPPoolStatus{}
				if p.Status != nil {
					status = *p.Status.DeepCopy()
				}
				status.Conditions = conditions.Apply(status.Conditions, given, metav1.NewTime(time.Now().Truncate(time.Second)))
				if record != nil {
					status.Transport = record
				}
				p.Status = &status
			}
			errs = append(errs, update(ctx, s.store, p, change))
		}
		return again, errors.Join(errs...)
	})
}

// runNodes keeps the conditions of nodes right until ctx ends.
func (s *statuses) runNodes(ctx context.Context) error {
	return s.follow(ctx, s.nodeNews, func(ctx context.Context) (time.Duration, error) {
		if !s.cache.Snapshot().InSync() {
			return 0, nil
		}
		names := s.suspect.take() // before the snapshot, which then has all that made them suspect
		snapshot := s.cache.Snapshot()
		pools := slices.Collect(snapshot.Pools())
		var errs []error
		for n := range nodesOf(snapshot, names) {
			given := conditions.OfNode(n, pools)
			change := func(n *api.Node) {
				n.Status.Conditions = conditions.Apply(n.Status.Conditions, given, metav1.NewTime(time.Now().Truncate(time.Second)))
			}
			if !changes(n, change) {
				continue
			}
			if err := update(ctx, s.store, n, change); err != nil {
				errs = append(errs, err)
				s.suspect.add(n.Name)
			}
			if err := backoff.Pause(ctx, nodeWrites); err != nil {
				break
			}
		}
		return 0, errors.Join(append(errs, backoff.Pause(ctx, judgeAgain))...)
	})
}

// nodesOf are those nodes of the names that there are, or all.
func nodesOf(snapshot *cache.Snapshot, names map[string]struct{}) iter.Seq[*api.Node] {
	if _, all := names[every]; all {
		return snapshot.Nodes()
	}
	return func(yield func(*api.Node) bool) {
		for name := range names {
			if n := snapshot.Node(name); n != nil && !yield(n) {
				return
			}
		}
	}
}

// follow calls act when there is news, and after the time that act returns, if any. Failures are tried again.
func (s *statuses) follow(ctx context.Context, news <-chan struct{}, act func(context.Context) (time.Duration, error)) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-again:
		}
		wait, err := act(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("statuses are not written, trying again", "error", err)
			wait = judgeAgain
		}
		if again = nil; wait > 0 {
			again = time.After(wait)
		}
	}
}

// changes tells whether a change would change an object.
func changes[T api.Object](o T, change func(T)) bool {
	c := o.DeepCopyObject().(T)
	change(c)
	return !apiequality.Semantic.DeepEqual(o, c)
}

// update changes a stored object, if that changes anything. known is how it looked lately; an object that is gone is fine.
func update[T api.Object](ctx context.Context, store datastore.Client, known T, change func(T)) error {
	if !changes(known, change) {
		return nil
	}
	var err error
	for range writeAttempts {
		var o api.Object
		if o, err = store.Get(ctx, api.KeyOf(known)); errors.Is(err, datastore.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		stored := o.(T)
		if !changes(stored, change) {
			return nil
		}
		change(stored)
		if _, err = store.Update(ctx, stored); !errors.Is(err, datastore.ErrConflict) {
			return err
		}
	}
	return err
}
