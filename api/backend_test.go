package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func TestBackend(t *testing.T) {
	for text, want := range map[string]struct {
		backend api.Backend
		bgp     bool
	}{
		"": {api.BackendBird, true}, "bird": {api.BackendBird, true}, "vxlan": {api.BackendVXLAN, false}, "none": {api.BackendNone, false},
	} {
		got, err := api.ParseBackend(text)
		require.NoError(t, err)
		require.Equal(t, want.backend, got)
		require.Equal(t, want.bgp, got.BGP())
	}
	_, err := api.ParseBackend("gobgp")
	require.EqualError(t, err, `"gobgp" is no backend; use bird, vxlan or none`)
}
