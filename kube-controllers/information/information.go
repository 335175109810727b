// Package information keeps what ClusterInformation(default) says of the software: the version of the process that leads, and
// what the cluster is made of. Only one leads, so that no two versions write in turn while a cluster is upgraded or downgraded. Typha
// makes the object, with the cluster's GUID; whether the datastore is locked is said there by who locks it.
package information

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// Facts is what the process that leads knows.
type Facts struct {
	Version string
	Types   []string // what the cluster is made of: "k8s", "bgp", "kdd" and the like
}

// Run keeps the object until ctx ends.
func Run(ctx context.Context, store *loop.Store, facts Facts, log *slog.Logger) error {
	config := loop.Config{Kinds: []string{"ClusterInformation"}, Log: log.With("part", "information")}
	return loop.Run(ctx, store, config, func(ctx context.Context, all loop.Objects) (time.Duration, error) {
		for info := range loop.Of[*api.ClusterInformation](all) {
			next := info.DeepCopy()
			if info.Locked() || !facts.in(&next.Spec) {
				continue
			}
			// What changed meanwhile brings a new decision.
			if _, err := store.Update(ctx, next); err != nil && !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrNotFound) {
				return 0, err
			}
		}
		return 0, nil
	})
}

// in writes the facts into the information, and reports whether that changed it. Types that others have written stay.
func (f Facts) in(info *api.ClusterInformationSpec) (changed bool) {
	types := words(info.ClusterType)
	for _, t := range f.Types {
		if !slices.Contains(types, t) {
			types, changed = append(types, t), true
		}
	}
	if changed {
		info.ClusterType = strings.Join(types, ",")
	}
	if info.CalicoVersion != f.Version {
		info.CalicoVersion, changed = f.Version, true
	}
	return changed
}

// Types are those of a list, such as "k8s,bgp", and further ones.
func Types(list string, further ...string) []string { return append(words(list), further...) }

func words(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}
