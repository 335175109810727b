package render_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/confd/render"
)

// TestReflection renders one cluster on every node, for each step from the mesh to reflectors: who has sessions with whom,
// and whom a reflector serves ("*"). Node e is a reflector by hand, f has another AS.
func TestReflection(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f"}
	other := api.ASNumber(65001)
	off := false
	for _, row := range []struct {
		what       string
		noMesh     bool
		reflection *api.Reflection
		want       []string // of each node
	}{
		{"mesh", false, nil, []string{"b c d f", "a c d f", "a b d f", "a b c f", "", "a b c d"}},
		{
			"mesh, and two reflect", false, &api.Reflection{Mesh: true, Reflectors: []string{"a", "b"}},
			[]string{"b c* d* f", "a c* d* f", "a b d f", "a b c f", "", "a b c d"},
		},
		{
			"reflectors", false, &api.Reflection{Reflectors: []string{"a", "b"}},
			[]string{"b c* d* f", "a c* d* f", "a b", "a b", "", "a b"},
		},
		{
			"reflectors, where the mesh is off", true, &api.Reflection{Mesh: true, Reflectors: []string{"a", "b"}},
			[]string{"b c* d* f", "a c* d* f", "a b", "a b", "", "a b"},
		},
		{
			"one that is gone, and one by hand", false, &api.Reflection{Reflectors: []string{"z", "e", "d"}},
			[]string{"d", "d", "d", "a* b* c* f", "", "d"},
		},
	} {
		for i, own := range names {
			s := render.NewState(render.Options{Node: own})
			config := &api.BGPConfiguration{}
			config.Name = "default"
			if row.reflection != nil {
				config.Status = &api.BGPConfigurationStatus{Reflection: row.reflection}
			}
			if row.noMesh {
				config.Spec.NodeToNodeMeshEnabled = &off
			}
			items := []view.Item{view.Resource{Object: config}}
			for j, name := range names {
				n := &api.Node{}
				n.Name = name
				n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.0.0.%d/24", j+1)}
				switch name {
				case "e":
					n.Spec.BGP.RouteReflectorClusterID = "1.0.0.1"
				case "f":
					n.Spec.BGP.ASNumber = &other
				}
				items = append(items, view.Resource{Object: n})
			}
			s.Commit(view.Batch{Updates: items, InSync: true})
			c, err := s.Render()
			require.NoError(t, err)
			var got []string
			for _, p := range c.Peers {
				name := names[p.Address.As4()[3]-1]
				require.Equal(t, render.Mesh, p.Type)
				if p.ReflectorClient {
					name += "*"
				}
				got = append(got, name)
			}
			require.Equal(t, row.want[i], strings.Join(got, " "), "%s: node %s", row.what, own)
			switch {
			case own == "e":
				require.Equal(t, netip.MustParseAddr("1.0.0.1"), c.ClusterID)
			case row.reflection != nil && slices.Contains(row.reflection.Reflectors, own):
				require.Equal(t, c.RouterID, c.ClusterID, "a cluster of its own")
			default:
				require.False(t, c.ClusterID.IsValid())
			}
		}
	}
}
