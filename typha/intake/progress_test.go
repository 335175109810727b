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
		p.moved(kind, "100", "", i%2 == 0)
	}
	require.False(t, p.inSync())
	for _, kind := range kinds {
		p.moved(kind, "", "", true)
	}
	require.True(t, p.inSync())
	p.moved("Node", "120", "", false)
	p.moved("Node", "110", "", false)
	require.Equal(t, Progress{Checkpoint: view.Checkpoint{"etcd": 120}, Floor: view.Checkpoint{"etcd": 100}, InSync: true}, p.state())
	for _, kind := range kinds {
		p.moved(kind, "130", "", false)
	}
	require.Equal(t, uint64(130), p.state().Floor["etcd"])

	// Where each kind is a source clients are told what has been seen, and not what only a listing has told.
	p = progress{perKind: true, reached: map[string]uint64{}, seen: map[string]uint64{}, synced: map[string]bool{}}
	p.moved("Node", "9", "7", false)
	p.moved("IPPool", "9", "", false)
	p.moved("Profile", "11/12", "5/0", false)
	p.moved("Profile", "11/14", "0/14", false)
	require.Equal(t, view.Checkpoint{"Node": 7, "Profile": 5, "Profile/1": 14}, p.state().Checkpoint)
	require.Equal(t, view.Checkpoint{"Node": 9, "IPPool": 9, "Profile": 11, "Profile/1": 14}, p.state().Floor)
}
