package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/conditions"
)

// policyKinds are the kinds whose objects are in tiers.
var policyKinds = []string{"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"}

// tiersChanged has tiers looked at when something that their conditions depend on has changed. An object that came in invalid
// may have changed nothing else.
func (s *statuses) tiersChanged(changes []cache.Change) {
	invalid := s.intake.Invalid()
	same := maps.EqualFunc(invalid, s.invalid, func(a, b error) bool { return a.Error() == b.Error() })
	s.invalid = invalid
	if !same || slices.ContainsFunc(changes, func(c cache.Change) bool { return c.Key.Kind == "Tier" || slices.Contains(policyKinds, c.Key.Kind) }) {
		poke(s.tierNews)
	}
}

// runTiers keeps the conditions of tiers right until ctx ends.
func (s *statuses) runTiers(ctx context.Context) error {
	return s.follow(ctx, s.tierNews, func(ctx context.Context) (time.Duration, error) {
		snapshot := s.cache.Snapshot()
		if !snapshot.InSync() {
			return 0, nil
		}
		faults := faultsOf(snapshot, s.intake.Invalid())
		var errs []error
		for t := range cache.All[*api.Tier](snapshot, "Tier") {
			given := conditions.OfTier(t.Name, faults)
			errs = append(errs, update(ctx, s.store, t, func(t *api.Tier) {
				t.Status.Conditions = conditions.Apply(t.Status.Conditions, given, metav1.NewTime(time.Now().Truncate(time.Second)))
			}))
		}
		return 0, errors.Join(append(errs, backoff.Pause(ctx, judgeAgain))...)
	})
}

// faultsOf are the policies that do not make sense: those that are not valid, those of Kubernetes of which something was closed,
// and those of tiers that nobody made. Where there is no tier to show it, the default one does.
func faultsOf(snapshot *cache.Snapshot, invalid map[api.Key]error) (faults []conditions.Fault) {
	exists := func(tier string) bool {
		return api.IsBuiltinTier(tier) || snapshot.Get(api.Key{Kind: "Tier", Name: tier}) != nil
	}
	for key, wrong := range invalid {
		if !slices.Contains(policyKinds, key.Kind) && !slices.Contains(kubernetes.ClusterKinds(), key.Kind) {
			continue
		}
		f := conditions.Fault{Policy: key, Tier: api.TierDefault, Wrong: wrong}
		if o, ok := snapshot.Get(key).(api.Object); ok { // what stands in for it
			if tier, ok := api.TierOf(o); ok && exists(tier) {
				f.Tier = tier
			}
		}
		faults = append(faults, f)
	}
	for _, kind := range policyKinds {
		for o := range cache.All[api.Object](snapshot, kind) {
			if tier, ok := api.TierOf(o); ok && !exists(tier) {
				wrong := fmt.Errorf("spec.tier: %q does not exist; create the tier, or name one that exists", tier)
				faults = append(faults, conditions.Fault{Policy: api.KeyOf(o), Tier: api.TierDefault, Wrong: wrong})
			}
		}
	}
	return faults
}
