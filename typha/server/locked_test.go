package server_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/client"
)

// While the datastore is locked no address is given out, and the reason is told.
func TestLockedDatastore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.NoError(t, datastore.Init(t.Context(), w.store))
	r, n1, _ := w.cluster()
	lock := func(ready bool) {
		t.Helper()
		key := api.Key{Kind: "ClusterInformation", Name: "default"}
		modify(w, key.Kind, key.Name, func(info *api.ClusterInformation) { info.Spec.DatastoreReady = &ready })
		eventually(t, "typha knows", func() bool {
			info, ok := r.state.Snapshot().Get(key).(*api.ClusterInformation)
			return ok && info.Locked() == !ready
		})
	}
	lock(false)
	_, err := n1.Reserve(t.Context(), client.Reserve{Count4: 1, Owner: &client.Owner{Handle: "net.c1"}})
	require.ErrorContains(t, err, "the datastore is locked for work on its data; calicoctl datastore migrate unlock ends that")
	lock(true)
	reserve(t, n1, "c1")
}
