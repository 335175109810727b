// Package hostendpoints keeps the host endpoints that nodes get by themselves; package auto decides which.
package hostendpoints

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/kube-controllers/hostendpoints/auto"
	"github.com/muslin-net/muslin/kube-controllers/loop"
	"github.com/muslin-net/muslin/kube-controllers/mirror"
	"github.com/muslin-net/muslin/kube-controllers/mirror/diff"
)

// Run keeps host endpoints until ctx ends. Those that were made earlier and are not wanted any more go, also when nothing is.
func Run(ctx context.Context, store *loop.Store, config *api.AutoHostEndpointConfig, every time.Duration, log *slog.Logger) error {
	return mirror.Mirror[*api.HostEndpoint]{
		Name: "hostendpoint", Kind: "HostEndpoint", Beside: []string{"Node"},
		Want: func(all loop.Objects) []*api.HostEndpoint {
			want, wrong := auto.Endpoints(slices.Collect(loop.Of[*api.Node](all)), config)
			for _, err := range wrong {
				log.Warn("a template of host endpoints makes no sense, and makes none", "error", err)
			}
			return want
		},
		Rules: diff.Rules[*api.HostEndpoint]{
			Owned: auto.Owned,
			Same: func(s, w *api.HostEndpoint) bool {
				return apiequality.Semantic.DeepEqual(s.Spec, w.Spec) && maps.Equal(s.Labels, w.Labels) && maps.Equal(s.Annotations, w.Annotations)
			},
			Fill: func(s, w *api.HostEndpoint) {
				w.Spec.DeepCopyInto(&s.Spec)
				s.Labels, s.Annotations = maps.Clone(w.Labels), maps.Clone(w.Annotations)
			},
		},
	}.Run(ctx, store, every, log)
}
