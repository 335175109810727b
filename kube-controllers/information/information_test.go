package information

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

func TestFactsAreWrittenOnce(t *testing.T) {
	facts := Facts{Version: "v0.2.0", Types: Types("k8s,bgp", "typha")}
	for before, after := range map[string]string{
		"": "k8s,bgp,typha", "k8s": "k8s,bgp,typha", "kubeadm,bgp": "kubeadm,bgp,k8s,typha", "typha, bgp,k8s": "typha, bgp,k8s",
	} {
		for _, version := range []string{"", "v0.1.0", "v3.30.1"} { // of an older release, of a newer one, and of Calico
			info := api.ClusterInformationSpec{ClusterGUID: "g", ClusterType: before, CalicoVersion: version}
			require.True(t, facts.in(&info))
			require.Equal(t, api.ClusterInformationSpec{ClusterGUID: "g", ClusterType: after, CalicoVersion: "v0.2.0"}, info)
			require.False(t, facts.in(&info))
		}
	}
}

// TestTheLeadersVersionStands runs leaders of two versions, one after the other, on a real etcd.
func TestTheLeadersVersionStands(t *testing.T) {
	server, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	client, err := server.Client(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	stored := datastore.Validating(client)
	read := func() *api.ClusterInformation {
		o, err := stored.Get(t.Context(), api.Key{Kind: "ClusterInformation", Name: api.DefaultName})
		require.NoError(t, err)
		return o.(*api.ClusterInformation)
	}
	log := slog.New(slog.DiscardHandler)
	lead := func(version string, while func()) {
		ctx, end := context.WithCancel(t.Context())
		var leading errgroup.Group
		store := loop.NewStore(stored, func(string, error) {}, log)
		leading.Go(func() error { return Run(ctx, store, Facts{version, []string{"k8s"}}, log) })
		while()
		end()
		require.ErrorIs(t, leading.Wait(), context.Canceled)
	}
	soon := func(version string) {
		require.Eventually(t, func() bool { return read().Spec.CalicoVersion == version }, time.Minute, 10*time.Millisecond)
	}
	lead("v0.1.0", func() {
		require.NoError(t, datastore.Init(t.Context(), stored)) // as a typha does that comes later
		soon("v0.1.0")
	})
	guid := read().Spec.ClusterGUID
	lead("v0.2.0", func() { soon("v0.2.0") })
	lead("v0.1.0", func() { // a downgrade
		soon("v0.1.0")
		locked, no := read(), false
		locked.Spec.DatastoreReady, locked.Spec.CalicoVersion = &no, "v9"
		locked, err := update(t, stored, locked)
		require.NoError(t, err)
		yes := true
		locked.Spec.DatastoreReady = &yes
		// Nothing was written meanwhile, or this would be a conflict; once it is unlocked, the leader's version comes back.
		_, err = update(t, stored, locked)
		require.NoError(t, err)
		soon("v0.1.0")
	})
	info := read()
	require.NotEmpty(t, guid)
	require.Equal(t, guid, info.Spec.ClusterGUID)
	require.Equal(t, "k8s", info.Spec.ClusterType)
	require.False(t, info.Locked())
}

func update(t *testing.T, c datastore.Client, info *api.ClusterInformation) (*api.ClusterInformation, error) {
	t.Helper()
	o, err := c.Update(t.Context(), info)
	if err != nil {
		return nil, err
	}
	return o.(*api.ClusterInformation), nil
}
