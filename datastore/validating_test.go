package datastore_test

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
)

// backend is an empty datastore without validation.
func backend(t *testing.T) datastore.Client {
	t.Helper()
	c, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func pool(name, cidr string) *api.IPPool {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr}}
	p.SetName(name)
	return p
}

func policy(name, tier string) *api.GlobalNetworkPolicy {
	p := &api.GlobalNetworkPolicy{}
	p.SetName(name)
	p.Spec.Tier = tier
	return p
}

func TestValidatingWrites(t *testing.T) {
	raw := backend(t)
	c := datastore.Validating(raw)
	ctx := t.Context()
	require.NoError(t, datastore.Init(ctx, c))

	given := pool("a", "10.0.0.0/16")
	created, err := c.Create(ctx, given)
	require.NoError(t, err)
	require.Equal(t, "all()", created.(*api.IPPool).Spec.NodeSelector, "defaults are stored")
	require.Empty(t, given.Spec.NodeSelector, "the caller's object is not changed")

	_, err = c.Create(ctx, pool("bad", "10.1.0.1/16"))
	require.ErrorContains(t, err, "spec.cidr")
	require.ErrorContains(t, err, "IPPool(bad)")
	var fields api.Errors
	require.ErrorAs(t, err, &fields)
	_, err = c.Create(ctx, pool("over", "10.0.128.0/17"))
	require.ErrorContains(t, err, "overlaps")

	moved := created.DeepCopyObject().(*api.IPPool)
	moved.Spec.CIDR = "10.2.0.0/16"
	_, err = c.Update(ctx, moved)
	require.ErrorContains(t, err, "spec.cidr")
	bare := pool("a", "10.0.0.0/16")
	bare.SetResourceVersion(created.GetResourceVersion())
	bare.Spec.NATOutgoing = true
	updated, err := c.Update(ctx, bare)
	require.NoError(t, err)
	require.Equal(t, created.GetUID(), updated.GetUID())
	_, err = c.Update(ctx, created)
	require.ErrorIs(t, err, datastore.ErrConflict)
	missing := pool("gone", "10.9.0.0/16")
	missing.SetResourceVersion("1")
	_, err = c.Update(ctx, missing)
	require.ErrorIs(t, err, datastore.ErrNotFound)
	require.ErrorContains(t, err, "update IPPool(gone)")

	_, err = c.Create(ctx, policy("security.deny", "security"))
	require.ErrorContains(t, err, "tier")
	tier := &api.Tier{}
	tier.SetName("security")
	_, err = c.Create(ctx, tier)
	require.NoError(t, err)
	_, err = c.Create(ctx, policy("security.deny", "security"))
	require.NoError(t, err)
	_, err = c.Delete(ctx, api.KeyOf(tier), datastore.Precondition{})
	require.ErrorContains(t, err, "security.deny")
	_, err = c.Delete(ctx, api.Key{Kind: "GlobalNetworkPolicy", Name: "security.deny"}, datastore.Precondition{})
	require.NoError(t, err)
	_, err = c.Delete(ctx, api.KeyOf(tier), datastore.Precondition{})
	require.NoError(t, err)
	_, err = c.Delete(ctx, api.Key{Kind: "Tier", Name: "default"}, datastore.Precondition{})
	require.ErrorContains(t, err, "built-in")
	_, err = c.Delete(ctx, api.KeyOf(tier), datastore.Precondition{})
	require.ErrorIs(t, err, datastore.ErrNotFound)
}

func TestValidatingServesWhatIsStored(t *testing.T) {
	raw := backend(t)
	c := datastore.Validating(raw)
	bad := pool("Bad Name", "10.0.0.9/4")
	_, err := raw.Create(t.Context(), bad)
	require.NoError(t, err)
	_, err = c.Get(t.Context(), api.KeyOf(bad))
	require.NoError(t, err)
	l, err := c.List(t.Context(), "IPPool", datastore.ListOptions{})
	require.NoError(t, err)
	require.Len(t, l.Items, 1)
	_, err = c.Delete(t.Context(), api.KeyOf(bad), datastore.Precondition{})
	require.NoError(t, err)
}

func TestBuiltinProfile(t *testing.T) {
	c := datastore.Validating(backend(t))
	ctx := t.Context()
	for _, name := range []string{"kns.shop", "zebra"} {
		p := &api.Profile{}
		p.SetName(name)
		_, err := c.Create(ctx, p)
		require.NoError(t, err)
	}
	builtin := api.DefaultAllowProfile()
	got, err := c.Get(ctx, api.KeyOf(builtin))
	require.NoError(t, err)
	require.Equal(t, "1", got.GetResourceVersion())

	names := func(prefix string) (names []string) {
		l, err := c.List(ctx, "Profile", datastore.ListOptions{NamePrefix: prefix})
		require.NoError(t, err)
		for _, o := range l.Items {
			names = append(names, o.GetName())
		}
		return names
	}
	require.Equal(t, []string{"kns.shop", builtin.Name, "zebra"}, names(""))
	require.Equal(t, []string{builtin.Name}, names("projectcalico-"))
	require.Equal(t, []string{"zebra"}, names("z"))

	_, err = c.Create(ctx, builtin)
	require.ErrorIs(t, err, datastore.ErrExists)
	_, err = c.Update(ctx, builtin)
	require.ErrorContains(t, err, "built-in")
	_, err = c.Delete(ctx, api.KeyOf(builtin), datastore.Precondition{})
	require.ErrorContains(t, err, "built-in")
}

func TestInit(t *testing.T) {
	raw := backend(t)
	ctx := t.Context()
	// What Calico made once, by hand: Init keeps it, and adds only what is missing.
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{CalicoVersion: "v3.1", ClusterType: "k8s"}}
	info.SetName("default")
	_, err := raw.Create(ctx, info)
	require.NoError(t, err)
	order := api.OrderDefault
	old := &api.Tier{Spec: api.TierSpec{Order: &order}}
	old.SetName("default")
	oldTier, err := raw.Create(ctx, old)
	require.NoError(t, err)

	var g errgroup.Group
	for range 8 {
		g.Go(func() error { return datastore.Init(ctx, datastore.Validating(raw)) })
	}
	require.NoError(t, g.Wait())
	got, err := raw.Get(ctx, api.KeyOf(info))
	require.NoError(t, err)
	spec := got.(*api.ClusterInformation).Spec
	require.Regexp(t, "^[0-9a-f]{32}$", spec.ClusterGUID)
	require.True(t, *spec.DatastoreReady)
	require.Equal(t, "v3.1", spec.CalicoVersion)

	tiers, err := raw.List(ctx, "Tier", datastore.ListOptions{})
	require.NoError(t, err)
	require.Len(t, tiers.Items, 3)
	require.Equal(t, oldTier, tiers.Items[0])
	felix, err := raw.Get(ctx, api.Key{Kind: "FelixConfiguration", Name: "default"})
	require.NoError(t, err)
	require.Equal(t, api.FelixConfigurationSpec{}, felix.(*api.FelixConfiguration).Spec, "it overrules nothing")

	// A datastore that is locked for a migration stays locked.
	locked := false
	got.(*api.ClusterInformation).Spec.DatastoreReady = &locked
	got, err = raw.Update(ctx, got)
	require.NoError(t, err)
	require.NoError(t, datastore.Init(ctx, raw))
	again, err := raw.Get(ctx, api.KeyOf(info))
	require.NoError(t, err)
	require.Equal(t, got, again)
}

func TestErrorText(t *testing.T) {
	key := api.Key{Kind: "IPPool", Name: "a"}
	cause := errors.New("cause")
	for _, test := range []struct {
		err  *datastore.Error
		want string
	}{
		{&datastore.Error{Op: "get", Key: key, Reason: datastore.ErrNotFound}, "get IPPool(a): does not exist"},
		{&datastore.Error{Op: "get", Key: key, Err: cause}, "get IPPool(a): cause"},
		{&datastore.Error{Op: "get", Key: key, Reason: datastore.ErrUnavailable, Err: cause}, "get IPPool(a): datastore cannot be reached: cause"},
	} {
		require.EqualError(t, test.err, test.want)
	}
	require.ErrorIs(t, &datastore.Error{Reason: datastore.ErrNotFound, Err: cause}, cause)
}
