package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/conditions"
)

const (
	// presenceLook is how often connections are compared with what is stored of them.
	presenceLook = time.Second
	// presencePatience is how long a node may be without connection before that is told: felix is back in a moment, on
	// this replica or another.
	presencePatience = 5 * time.Second
)

// onlyReplica is what a typha is called that has no others.
const onlyReplica = "typha"

// presence writes which nodes are connected: the condition Connected of Nodes, and only when it changes. Each replica
// speaks for itself: it says of its own nodes that they are connected, and to whom, and takes back what it has said itself.
// A node that goes to another replica is by then said to be connected to that one. A replica that has restarted takes back
// what it said before for nodes that do not come back; one that never returns leaves its word behind, until the node
// connects anywhere.
type presence struct {
	store    datastore.Client
	cache    *cache.Cache
	sessions *registry
	replica  string
	log      *slog.Logger

	absent map[string]time.Time // nodes that are said to be connected here and are not, and since when
}

func newPresence(cfg Config, sessions *registry, log *slog.Logger) *presence {
	p := &presence{store: cfg.Datastore, cache: cfg.Cache, sessions: sessions, replica: onlyReplica, log: log, absent: map[string]time.Time{}}
	if len(cfg.Replicas) > 0 {
		p.replica = cfg.Replicas[0]
	}
	return p
}

func (p *presence) run(ctx context.Context) error {
	tick := time.NewTicker(presenceLook)
	defer tick.Stop()
	begin := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := p.look(ctx, time.Since(begin) < startPatience); err != nil && ctx.Err() == nil {
			p.log.Warn("which nodes are connected is not written, trying again", "error", err)
		}
	}
}

// look writes what has changed. Soon after the start nobody is missed yet.
func (p *presence) look(ctx context.Context, early bool) error {
	snapshot := p.cache.Snapshot()
	if !snapshot.InSync() {
		return nil
	}
	here := p.sessions.nodes()
	there := map[string]bool{}
	var errs []error
	for n := range snapshot.Nodes() {
		there[n.Name] = true
		stored := meta.FindStatusCondition(n.Status.Conditions, api.ConditionConnected)
		is := slices.Contains(here, n.Name)
		said := stored != nil && stored.Status == metav1.ConditionTrue && stored.Message == p.message(true)
		if is == said {
			delete(p.absent, n.Name)
		}
		if is == said || !is && (early || !p.missed(n.Name)) {
			continue
		}
		change := func(n *api.Node) {
			if stored := meta.FindStatusCondition(n.Status.Conditions, api.ConditionConnected); !is && (stored == nil || stored.Message != p.message(true)) {
				return // it is with another replica by now
			}
			n.Status.Conditions = conditions.Connected(n.Status.Conditions, is, p.message(is), metav1.NewTime(time.Now().Truncate(time.Second)))
		}
		errs = append(errs, update(ctx, p.store, n, change))
		if err := pause(ctx, nodeWrites); err != nil {
			break
		}
	}
	for n := range p.absent {
		if !there[n] {
			delete(p.absent, n)
		}
	}
	return errors.Join(errs...)
}

// missed tells whether a node has been absent for too long.
func (p *presence) missed(node string) bool {
	since, known := p.absent[node]
	if !known {
		p.absent[node] = time.Now()
		return false
	}
	return time.Since(since) >= presencePatience
}

func (p *presence) message(connected bool) string {
	if connected {
		return "felix is connected to " + p.replica
	}
	return "felix was connected to " + p.replica + " last, and has not come back"
}
