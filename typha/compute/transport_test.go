package compute

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

func TestModesChangeInSteps(t *testing.T) {
	never := Transport{Send: view.TunnelNone, Receive: []view.Tunnel{view.TunnelNone}}
	vxlan := Transport{Send: view.TunnelVXLAN, Receive: []view.Tunnel{view.TunnelVXLAN}}
	cross := Transport{Send: view.TunnelIPIP, CrossSubnet: true, Receive: []view.Tunnel{view.TunnelNone, view.TunnelIPIP}}
	type result struct {
		now    Transport
		moving bool
	}
	at := func(now Transport, moving bool) result { return result{now, moving} }
	set := func(m *Modes, goal Transport) result {
		now, moving, _ := m.Set("p", goal)
		return result{now, moving}
	}
	both := []view.Tunnel{view.TunnelNone, view.TunnelVXLAN}

	m := NewModes()
	require.Equal(t, result{never, false}, set(m, never), "a new pool is there at once")
	require.Equal(t, result{never, false}, set(m, never))
	require.Equal(t, result{Transport{Send: view.TunnelNone, Receive: both}, true}, set(m, vxlan), "first all accept both")
	require.Equal(t, result{Transport{Send: view.TunnelVXLAN, Receive: both}, true}, at(m.Advance("p")), "then senders change")
	require.Equal(t, result{vxlan, false}, at(m.Advance("p")), "then the old way is retired")
	require.Equal(t, result{vxlan, false}, at(m.Advance("p")))

	// Another change of mind on the way: what is being sent stays accepted until the end.
	m.Set("p", never)
	m.Advance("p")
	all := []view.Tunnel{view.TunnelNone, view.TunnelIPIP, view.TunnelVXLAN}
	require.Equal(t, result{Transport{Send: view.TunnelNone, Receive: all}, true}, set(m, cross))
	require.Equal(t, result{Transport{Send: view.TunnelIPIP, CrossSubnet: true, Receive: all}, true}, at(m.Advance("p")))
	require.Equal(t, result{cross, false}, at(m.Advance("p")))

	m.Forget("p")
	require.Equal(t, result{vxlan, false}, set(m, vxlan))
	require.Equal(t, result{Transport{}, false}, at(m.Advance("unknown")))
}

// TestTransportOverrules has routes follow what is said of a pool, and the pool itself when that ends.
func TestTransportOverrules(t *testing.T) {
	e, store := New(), views.NewStore()
	pool := &api.IPPool{}
	pool.Name, pool.Spec.CIDR, pool.Spec.VXLANMode = "p", "10.0.0.0/16", api.VXLANAlways
	affinity := "host:n1"
	block := api.NewIPAMBlock(netip.MustParsePrefix("10.0.0.0/26"))
	block.Spec.Affinity = &affinity
	put(e, pool, block)
	route := func() view.Route {
		store.Commit(e.Flush())
		return store.Get(nodeView("any"), view.Key{Kind: view.KindRoute, ID: "10.0.0.0/26@n1"}).Item().(view.Route)
	}
	require.Equal(t, view.TunnelVXLAN, route().Send)
	e.SetTransport("p", &Transport{Send: view.TunnelNone, Receive: []view.Tunnel{view.TunnelNone, view.TunnelVXLAN}})
	require.Equal(t, view.TunnelNone, route().Send)
	require.Equal(t, []view.Tunnel{view.TunnelNone, view.TunnelVXLAN}, route().Receive)
	e.SetTransport("p", nil)
	require.Equal(t, []view.Tunnel{view.TunnelVXLAN}, route().Receive)
}
