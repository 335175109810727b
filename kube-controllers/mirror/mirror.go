// Package mirror keeps stored objects of one kind what something else says they should be: what Kubernetes has, or what follows
// from other objects. Package diff decides; this one brings it what there is, and writes.
package mirror

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/kube-controllers/loop"
	"github.com/muslin-net/muslin/kube-controllers/mirror/diff"
)

// gather is for how long changes are put together.
const gather = 200 * time.Millisecond

// Mirror is a controller that keeps objects of one kind.
type Mirror[T api.Object] struct {
	Name    string // for the log
	Kind    string // that is kept
	Beside  []string
	Sources []loop.Source
	// Want returns what should be stored, given what is, of Kind and of the kinds Beside. Each object has its defaults.
	Want func(all loop.Objects) []T
	diff.Rules[T]
}

// Run keeps the objects until ctx ends, and looks at them every so often though nothing has changed.
func (m Mirror[T]) Run(ctx context.Context, store *loop.Store, every time.Duration, log *slog.Logger) error {
	log = log.With("part", m.Name)
	config := loop.Config{
		Kinds: append([]string{m.Kind}, m.Beside...), Sources: m.Sources, Gather: gather, Every: every, Log: log,
	}
	return loop.Run(ctx, store, config, func(ctx context.Context, all loop.Objects) (time.Duration, error) {
		return 0, write(ctx, store, diff.Make(m.Want(all), slices.Collect(loop.Of[T](all)), m.Rules), log)
	})
}

// write does what is planned, as far as it goes.
func write[T api.Object](ctx context.Context, store datastore.Client, plan diff.Plan[T], log *slog.Logger) error {
	var errs []error
	try := func(what string, o T, err error) {
		switch {
		case err == nil:
			log.Info(what, "object", api.KeyOf(o).String())
		case errors.Is(err, datastore.ErrExists), errors.Is(err, datastore.ErrNotFound), errors.Is(err, datastore.ErrConflict):
			// Somebody was faster. The watch brings what is there now, and with it the next look.
			log.Debug("not "+what+", others were faster", "object", api.KeyOf(o).String(), "error", err)
		default:
			errs = append(errs, err)
		}
	}
	for _, o := range plan.Delete {
		_, err := store.Delete(ctx, api.KeyOf(o), datastore.Precondition{Revision: o.GetResourceVersion()})
		try("deleted", o, err)
	}
	for _, o := range plan.Create {
		_, err := store.Create(ctx, o)
		try("created", o, err)
	}
	for _, o := range plan.Update {
		_, err := store.Update(ctx, o)
		try("updated", o, err)
	}
	for _, o := range plan.Foreign {
		log.Warn("an object of this name is there that was not made here; it is left alone", "object", api.KeyOf(o).String())
	}
	return errors.Join(errs...)
}

// Policies keeps policies of Kubernetes among ours, as knp.default.*.
func Policies(from loop.Table[api.NetworkPolicy]) Mirror[*api.NetworkPolicy] {
	return Mirror[*api.NetworkPolicy]{
		Name: "policy", Kind: "NetworkPolicy", Sources: []loop.Source{from},
		Want: func(loop.Objects) []*api.NetworkPolicy { return defaulted(from.All()) },
		Rules: diff.Rules[*api.NetworkPolicy]{
			Owned: func(p *api.NetworkPolicy) bool { return strings.HasPrefix(p.Name, kubernetes.NamePrefix) },
			Same:  func(s, w *api.NetworkPolicy) bool { return same(&s.Spec, &w.Spec) },
			Fill:  func(s, w *api.NetworkPolicy) { w.Spec.DeepCopyInto(&s.Spec) },
		},
	}
}

// Profiles keeps the profiles whose names begin with a prefix.
func Profiles(name, prefix string, from loop.Table[api.Profile]) Mirror[*api.Profile] {
	return Mirror[*api.Profile]{
		Name: name, Kind: "Profile", Sources: []loop.Source{from},
		Want: func(loop.Objects) []*api.Profile { return defaulted(from.All()) },
		Rules: diff.Rules[*api.Profile]{
			Owned: func(p *api.Profile) bool { return strings.HasPrefix(p.Name, prefix) },
			Same:  func(s, w *api.Profile) bool { return same(&s.Spec, &w.Spec) },
			Fill:  func(s, w *api.Profile) { w.Spec.DeepCopyInto(&s.Spec) },
		},
	}
}

// EndpointLabels keeps the labels of endpoints those of their pods; from has the labels that a pod's endpoint should have, by
// "namespace/name"; nil for one without an endpoint.
func EndpointLabels(from loop.Table[map[string]string]) Mirror[*api.WorkloadEndpoint] {
	return Mirror[*api.WorkloadEndpoint]{
		Name: "workloadendpoint", Kind: "WorkloadEndpoint", Sources: []loop.Source{from},
		Want: func(all loop.Objects) (want []*api.WorkloadEndpoint) {
			pods := from.All()
			for ep := range loop.Of[*api.WorkloadEndpoint](all) {
				labels := pods[ep.Namespace+"/"+ep.Spec.Pod]
				if labels == nil || *labels == nil || ep.Spec.Orchestrator != api.OrchestratorKubernetes {
					continue
				}
				w := &api.WorkloadEndpoint{}
				w.Name, w.Namespace, w.Labels = ep.Name, ep.Namespace, *labels
				want = append(want, w)
			}
			return want
		},
		Rules: diff.Rules[*api.WorkloadEndpoint]{
			OnlyUpdate: true,
			Owned:      func(*api.WorkloadEndpoint) bool { return true },
			Same:       func(s, w *api.WorkloadEndpoint) bool { return maps.Equal(s.Labels, w.Labels) },
			Fill:       func(s, w *api.WorkloadEndpoint) { s.Labels = maps.Clone(w.Labels) },
		},
	}
}
