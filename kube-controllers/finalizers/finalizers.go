// Package finalizers keeps pools and tiers that somebody has deleted until they can go, where objects are custom resources of
// projectcalico.org/v3, which kubectl deletes past every check of ours. Package hold decides. It owns the finalizers of both
// and the condition Ready of tiers, and makes built-in tiers anew.
package finalizers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/finalizers/hold"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

const (
	// gather is for how long changes are put together.
	gather = 200 * time.Millisecond
	// settle is for how long a pool is left alone that is being deleted.
	settle = 2 * time.Second
)

// Pools keeps pools until ctx ends. That a pool is on its way out typha says in its status; nobody takes addresses from it.
func Pools(ctx context.Context, store *loop.Store, log *slog.Logger) error {
	log = log.With("part", "ippool")
	allocator := alloc.New(store, alloc.Options{Log: log})
	var memory hold.Pools
	config := loop.Config{Kinds: []string{"IPPool", "IPAMBlock", "BlockAffinity"}, Gather: gather, Log: log}
	return loop.Run(ctx, store, config, func(ctx context.Context, all loop.Objects) (time.Duration, error) {
		plan := memory.Look(slices.Collect(loop.Of[*api.IPPool](all)), owned(all), settle, time.Now())
		var errs []error
		for _, p := range plan.Release {
			log.Info("releasing the blocks of a pool that is being deleted", "pool", p.Name)
			if err := allocator.ReleasePool(ctx, p.Prefix()); err != nil {
				errs = append(errs, fmt.Errorf("pool %s: %w", p.Name, err))
			}
		}
		for _, p := range plan.Write {
			errs = append(errs, update(ctx, store, p))
		}
		return plan.Next, errors.Join(errs...)
	})
}

// owned are the blocks that belong to somebody, by their affinities or by themselves.
func owned(all loop.Objects) (list []netip.Prefix) {
	for _, o := range all {
		switch o := o.(type) {
		case *api.BlockAffinity:
			if _, _, cidr, err := api.ParseAffinityName(o.Name); err == nil && !o.Spec.Deleted {
				list = append(list, cidr)
			}
		case *api.IPAMBlock:
			if b, err := block.Of(o.DeepCopy()); err == nil && b.Affinity() != "" && !o.Spec.Deleted {
				list = append(list, b.CIDR())
			}
		}
	}
	return list
}

// policyKinds are the kinds whose objects are in tiers.
var policyKinds = []string{"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"}

// Tiers keeps tiers until ctx ends.
func Tiers(ctx context.Context, store *loop.Store, log *slog.Logger) error {
	log = log.With("part", "tier")
	config := loop.Config{Kinds: append([]string{"Tier"}, policyKinds...), Gather: gather, Slim: map[string]func(api.Object) api.Object{}, Log: log}
	for _, kind := range policyKinds {
		config.Slim[kind] = slim
	}
	return loop.Run(ctx, store, config, func(ctx context.Context, all loop.Objects) (time.Duration, error) {
		policies := map[string][]api.Key{}
		for key, o := range all {
			if tier, is := api.TierOf(o); is {
				policies[tier] = append(policies[tier], key)
			}
		}
		var errs []error
		for _, t := range api.BuiltinTiers() {
			if all[api.KeyOf(t)] != nil {
				continue
			}
			if _, err := store.Create(ctx, t); err != nil && !errors.Is(err, datastore.ErrExists) {
				errs = append(errs, err)
			}
		}
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		for _, t := range hold.Tiers(slices.Collect(loop.Of[*api.Tier](all)), policies, now) {
			errs = append(errs, update(ctx, store, t))
		}
		return 0, errors.Join(errs...)
	})
}

// slim keeps of policies which tier they are in.
func slim(o api.Object) api.Object {
	p := &api.GlobalNetworkPolicy{}
	p.Spec.Tier, _ = api.TierOf(o)
	return p
}

// update writes what was decided by an object as it was seen; if it has changed meanwhile, the change brings a new decision.
func update(ctx context.Context, store datastore.Client, o api.Object) error {
	_, err := store.Update(ctx, o)
	if errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	return err
}
