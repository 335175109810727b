package etcd_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/etcd"
)

func TestAFullEtcdIsTold(t *testing.T) {
	s, raw := server(t, embedded.Config{Logger: quiet(), Quota: 4 << 20})
	bare := client(t, etcd.Config{Endpoints: []string{s.Endpoint()}})
	store := datastore.Validating(bare)
	require.NoError(t, store.Ready(t.Context()))
	require.NoError(t, datastore.Full(t.Context(), store))

	junk := strings.Repeat("x", 1<<20)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = raw.Put(t.Context(), fmt.Sprint("junk/", i), junk)
	}
	require.Error(t, err, "100 MB fit into 4")
	_, err = bare.Create(t.Context(), pool("a"))
	require.ErrorIs(t, err, datastore.ErrFull)
	require.ErrorContains(t, err, "etcdctl alarm disarm")
	require.NotContains(t, err.Error(), "is not known")
	err = datastore.Full(t.Context(), store)
	require.ErrorIs(t, err, datastore.ErrFull)
	require.ErrorContains(t, err, "etcdctl alarm disarm")
	require.NoError(t, store.Ready(t.Context()), "it is read as ever")

	got, err := raw.Delete(t.Context(), "junk/", clientv3.WithPrefix())
	require.NoError(t, err)
	_, err = raw.Compact(t.Context(), got.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	_, err = raw.Defragment(t.Context(), s.Endpoint())
	require.NoError(t, err)
	_, err = raw.AlarmDisarm(t.Context(), &clientv3.AlarmMember{})
	require.NoError(t, err)
	require.NoError(t, datastore.Full(t.Context(), store))
	_, err = bare.Create(t.Context(), pool("a"))
	require.NoError(t, err)
}
