// Package reflector keeps the cluster's route reflectors: it follows nodes and the BGPConfiguration named default, has
// package elect decide, and writes what there should be into that object's status, which nodes go by. It owns that status
// and nothing else.
package reflector

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/kube-controllers/loop"
	"github.com/muslin-net/muslin/kube-controllers/reflector/elect"
)

// gather is for how long changes are put together.
const gather = 50 * time.Millisecond

// forgotten is after which time a node that is away is not waited for any more: it will find new sessions when it is back.
const forgotten = 10 * time.Minute

// Options tune a Controller.
type Options struct {
	// Overlap is for how long old sessions stay beside those that come in their place.
	Overlap time.Duration
	// Lost is how long a reflector may be away before another takes its place.
	Lost time.Duration
}

// Controller elects reflectors. One of them runs at a time.
type Controller struct {
	store   *loop.Store
	options Options
	log     *slog.Logger
	gauge   *prometheus.GaugeVec
}

// New returns a controller that writes to store.
func New(store *loop.Store, o Options, log *slog.Logger, metrics prometheus.Registerer) *Controller {
	c := &Controller{store: store, options: o, log: log, gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "kube_controllers", Name: "route_reflectors", Help: "Nodes chosen as route reflectors, and 1 for the mesh if it is up.",
	}, []string{"what"})}
	metrics.MustRegister(c.gauge)
	return c
}

// Run elects until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	r := &run{Controller: c, away: map[string]time.Time{}}
	return loop.Run(ctx, c.store, loop.Config{Kinds: []string{"Node", "BGPConfiguration"}, Gather: gather, Log: c.log}, r.decide)
}

// run is one time of being the leader. Times are this process's own: whoever leads next begins to count anew, and waits
// rather too long than too short.
type run struct {
	*Controller
	away  map[string]time.Time // nodes that are not connected, and since when
	last  *api.Reflection      // what was there last
	since time.Time            // and since when
	began bool
}

func (r *run) decide(ctx context.Context, all loop.Objects) (time.Duration, error) {
	now := time.Now()
	nodes := slices.SortedFunc(loop.Of[*api.Node](all), func(a, b *api.Node) int { return strings.Compare(a.Name, b.Name) })
	r.look(nodes, now)
	config, ok := all[api.Key{Kind: "BGPConfiguration", Name: api.DefaultName}].(*api.BGPConfiguration)
	if !ok {
		r.show(nil)
		return 0, nil // nothing is asked for, and there is nothing to write it to
	}
	var have *api.Reflection
	if config.Status != nil {
		have = config.Status.Reflection
	}
	if !r.began || !elect.Same(r.last, have) {
		r.last, r.since, r.began = have, now, true
	}
	r.show(have)
	want := elect.Want(config, nodes, have, func(n string) elect.Presence { return r.presence(n, now) })
	next := elect.Next(have, want, now.Sub(r.since) >= r.options.Overlap && !r.awaited(nodes, have, now))
	return r.wait(now), r.write(ctx, config, have, next)
}

// look notes who is away.
func (r *run) look(nodes []*api.Node, now time.Time) {
	there := map[string]bool{}
	for _, n := range nodes {
		if !meta.IsStatusConditionFalse(n.Status.Conditions, api.ConditionConnected) {
			continue
		}
		there[n.Name] = true
		if _, known := r.away[n.Name]; !known {
			r.away[n.Name] = now
		}
	}
	for n := range r.away {
		if !there[n] {
			delete(r.away, n)
		}
	}
}

func (r *run) presence(node string, now time.Time) elect.Presence {
	since, away := r.away[node]
	switch {
	case !away:
		return elect.Here
	case now.Sub(since) < r.options.Lost:
		return elect.Away
	}
	return elect.Lost
}

// awaited tells whether a node that has yet to hear of the sessions that there are now may be back soon. Reflectors are not
// waited for: it is their sessions that may be about to go.
func (r *run) awaited(nodes []*api.Node, have *api.Reflection, now time.Time) bool {
	return slices.ContainsFunc(elect.Members(nodes), func(n *api.Node) bool {
		since, away := r.away[n.Name]
		return away && now.Sub(since) < forgotten && (have == nil || !slices.Contains(have.Reflectors, n.Name))
	})
}

// wait is when something may have to be decided anew though nothing has changed: when what there is has settled, or when a
// node that is away becomes lost or forgotten.
func (r *run) wait(now time.Time) time.Duration {
	wait := time.Duration(0)
	soon := func(d time.Duration) {
		if d += 10 * time.Millisecond; d > 0 && (wait == 0 || d < wait) {
			wait = d
		}
	}
	soon(r.options.Overlap - now.Sub(r.since))
	for _, since := range r.away {
		soon(r.options.Lost - now.Sub(since))
		soon(forgotten - now.Sub(since))
	}
	return wait
}

// write stores what there should be. config is what was decided by: if it has changed meanwhile, that is a conflict, and
// the change brings a new decision.
func (r *run) write(ctx context.Context, config *api.BGPConfiguration, have, next *api.Reflection) error {
	if have == nil && next == nil || have != nil && next != nil && elect.Same(have, next) && have.Message == next.Message {
		return nil
	}
	changed := config.DeepCopy()
	changed.Status = nil
	if next != nil {
		changed.Status = &api.BGPConfigurationStatus{Reflection: next}
	}
	if _, err := r.store.Update(ctx, changed); err != nil {
		return err
	}
	said := api.Reflection{Mesh: true}
	if next != nil {
		said = *next
	}
	r.log.Info("reflection", "mesh", said.Mesh, "reflectors", said.Reflectors, "message", said.Message)
	return nil
}

func (r *run) show(have *api.Reflection) {
	mesh, reflectors := 1.0, 0
	if have != nil {
		reflectors = len(have.Reflectors)
		if !have.Mesh {
			mesh = 0
		}
	}
	r.gauge.WithLabelValues("mesh").Set(mesh)
	r.gauge.WithLabelValues("reflectors").Set(float64(reflectors))
}
