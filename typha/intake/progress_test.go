package intake

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

func TestProgress(t *testing.T) {
	p := progress{reached: map[string]uint64{}, synced: map[string]bool{}}
	for i, kind := range kinds {
		require.False(t, p.inSync())
		p.moved(kind, "100", i%2 == 0)
	}
	require.False(t, p.inSync())
	for _, kind := range kinds {
		p.moved(kind, "", true)
	}
	require.True(t, p.inSync())
	p.moved("Node", "120", false)
	p.moved("Node", "110", false)
	require.Equal(t, Progress{Checkpoint: view.Checkpoint{"etcd": 120}, Floor: view.Checkpoint{"etcd": 100}, InSync: true}, p.state())
	for _, kind := range kinds {
		p.moved(kind, "130", false)
	}
	require.Equal(t, uint64(130), p.state().Floor["etcd"])

	p = progress{perKind: true, reached: map[string]uint64{}, synced: map[string]bool{}}
	p.moved("Node", "7", false)
	p.moved("IPPool", "9", false)
	require.Equal(t, view.Checkpoint{"Node": 7, "IPPool": 9}, p.state().Checkpoint)
	require.Equal(t, p.state().Checkpoint, p.state().Floor)
}
