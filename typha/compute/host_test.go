package compute

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
)

// A doNotTrack policy on the endpoint of all interfaces is left out, and told about once.
func TestDoNotTrackOnAllInterfacesIsWarnedOf(t *testing.T) {
	e := New()
	hep := &api.HostEndpoint{Spec: api.HostEndpointSpec{Node: "n1", InterfaceName: "*"}}
	hep.Name, hep.Labels = "all", map[string]string{"a": "b"}
	raw := &api.GlobalNetworkPolicy{Spec: api.GlobalNetworkPolicySpec{DoNotTrack: true, ApplyOnForward: true}}
	raw.Name, raw.Spec.Selector = "raw", "has(a)"
	put := func(o api.Object) []string {
		e.Apply(cache.Change{Key: api.KeyOf(o), Object: o})
		e.Flush()
		return e.Warnings()
	}
	require.Empty(t, put(hep))
	require.Equal(t, []string{"policy gnp/raw is doNotTrack and has no effect on host endpoint all, which is of all interfaces (*); name the interface"}, put(raw))
	labelled := hep.DeepCopy()
	labelled.Labels["c"] = "d"
	require.Empty(t, put(labelled), "told already")
	named := hep.DeepCopy()
	named.Spec.InterfaceName = "eth0"
	require.Empty(t, put(named))
	require.Len(t, put(hep.DeepCopy()), 1, "again of all interfaces")
}
