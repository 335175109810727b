package server

import (
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/conditions"
)

// TestFaultsOfPoliciesOfKubernetes has their own tiers show them, and the default one those that are for nobody.
func TestFaultsOfPoliciesOfKubernetes(t *testing.T) {
	closed := &api.GlobalNetworkPolicy{}
	closed.Spec.Tier = api.TierKubeAdmin
	key := func(name string) api.Key { return api.Key{Kind: kubernetes.KindCluster, Name: name} }
	c := cache.New()
	c.Apply([]cache.Change{{Key: key("closed"), Object: closed}}, nil, true)
	wrong := errors.New("nodes are not supported")
	faults := faultsOf(c.Snapshot(), map[api.Key]error{key("closed"): wrong, key("nobody"): wrong, {Kind: "IPPool", Name: "p"}: wrong})
	require.Len(t, faults, 2)
	require.True(t, slices.Contains(faults, conditions.Fault{Policy: key("closed"), Tier: api.TierKubeAdmin, Wrong: wrong}))
	require.True(t, slices.Contains(faults, conditions.Fault{Policy: key("nobody"), Tier: api.TierDefault, Wrong: wrong}))
}
