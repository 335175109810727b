package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
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
// connects anywhere, or, where replicas are discovered, the others take its word back.
type presence struct {
	store    datastore.Client
	cache    *cache.Cache
	sessions *registry
	replicas *replicas
	log      *slog.Logger

	absent map[string]time.Time // nodes that are said to be connected here and are not, and since when
}

func newPresence(cfg Config, sessions *registry, replicas *replicas, log *slog.Logger) *presence {
	return &presence{store: cfg.Datastore, cache: cfg.Cache, sessions: sessions, replicas: replicas, log: log, absent: map[string]time.Time{}}
}

func (p *presence) run(ctx context.Context) error {
	tick := time.NewTicker(presenceLook)
	defer tick.Stop()
	begin, failing := time.Now(), false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := p.look(ctx, time.Since(begin) < startPatience)
		if err != nil && !failing && ctx.Err() == nil {
			p.log.Warn("which nodes are connected is not written, trying again", "error", err)
		}
		failing = err != nil
	}
}

// look writes what has changed. Soon after the start nobody is missed yet.
func (p *presence) look(ctx context.Context, early bool) error {
	snapshot := p.cache.Snapshot()
	replica, known := p.replicas.self()
	if !snapshot.InSync() || !known {
		return nil
	}
	words := connectedTo + replica
	here := map[string]bool{}
	for _, n := range p.sessions.nodes() {
		here[n] = true
	}
	there := map[string]bool{}
	var errs []error
	for n := range snapshot.Nodes() {
		there[n.Name] = true
		stored := meta.FindStatusCondition(n.Status.Conditions, api.ConditionConnected)
		is := here[n.Name]
		said := stored != nil && stored.Status == metav1.ConditionTrue && stored.Message == words
		orphan := !said && p.orphaned(stored)
		if is == said && !orphan {
			delete(p.absent, n.Name)
		}
		if is == said && (is || !orphan) || !is && (early || !p.missed(n.Name)) {
			continue
		}
		change := func(n *api.Node) {
			stored := meta.FindStatusCondition(n.Status.Conditions, api.ConditionConnected)
			if !is && (stored == nil || stored.Message != words && !p.orphaned(stored)) {
				return // it is with another replica by now
			}
			message := words
			if !is {
				message = fmt.Sprintf(lostWords, strings.TrimPrefix(stored.Message, connectedTo))
			}
			n.Status.Conditions = conditions.Connected(n.Status.Conditions, is, message, metav1.NewTime(time.Now().Truncate(time.Second)))
		}
		errs = append(errs, update(ctx, p.store, n, change))
		if err := backoff.Pause(ctx, nodeWrites); err != nil {
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

// The words of the condition: connectedTo is followed by the replica's name.
const (
	connectedTo = "felix is connected to "
	lostWords   = "felix was connected to %s last, and has not come back"
)

// orphaned tells whether a node is said to be connected to a replica that is no more.
func (p *presence) orphaned(stored *metav1.Condition) bool {
	if stored == nil || stored.Status != metav1.ConditionTrue {
		return false
	}
	replica := connectedAt(stored.Message)
	return replica != "" && p.replicas.gone(replica)
}

// connectedAt is the replica that the words of a condition name; empty if they name none.
func connectedAt(words string) string {
	if replica, ok := strings.CutPrefix(words, connectedTo); ok {
		return replica
	}
	return ""
}
