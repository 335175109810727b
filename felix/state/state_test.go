package state_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
)

func route(dst, node string, receive ...view.Tunnel) view.Route {
	return view.Route{Dst: netip.MustParsePrefix(dst), Type: view.RouteBlock, Node: node, Receive: receive}
}

func apply(s *state.State, items ...view.Item) state.Section {
	return s.Apply(view.Batch{Updates: items})
}

// A route changes the firewall, and what fits into tunnels, only when the first asks for a tunnel to be received, or the last
// no longer does: else each block of a large cluster would have the whole firewall computed anew.
func TestReceives(t *testing.T) {
	s := state.New("n")
	const some, all = state.Routes | state.Tunnels, state.All
	one, two := route("10.0.0.0/26", "a", view.TunnelVXLAN), route("10.0.1.0/26", "b", view.TunnelNone, view.TunnelVXLAN)
	require.Equal(t, all, apply(s, one))
	require.Equal(t, all, apply(s, two), "the first that is received directly")
	require.True(t, s.Receives(false, view.TunnelVXLAN))
	require.False(t, s.Receives(true, view.TunnelVXLAN), "of the other family")
	require.Equal(t, some, apply(s, two), "the same again")
	require.Equal(t, some, s.Apply(view.Batch{Removes: []view.Key{one.Key()}}), "another still asks for it")
	require.True(t, s.Receives(false, view.TunnelVXLAN))
	require.Equal(t, all, apply(s, route("10.0.1.0/26", "b", view.TunnelNone)))
	require.False(t, s.Receives(false, view.TunnelVXLAN))
	require.Equal(t, all, s.Apply(view.Batch{Removes: []view.Key{two.Key()}}))
	require.Equal(t, some, s.Apply(view.Batch{Removes: []view.Key{two.Key()}}), "what is not there")
}

func TestSetDeltas(t *testing.T) {
	m := func(p string) view.Member { return view.Member{Prefix: netip.MustParsePrefix(p)} }
	s := state.New("n")
	apply(s, view.IPSet{ID: "s:x", Type: view.SetNet, Members: []view.Member{m("10.0.0.1/32"), m("10.0.0.3/32")}})
	require.Equal(t, state.Firewall, apply(s, view.IPSetDelta{ID: "s:x", Added: []view.Member{m("10.0.0.2/32")}, Removed: []view.Member{m("10.0.0.3/32")}}))
	want := []view.Member{m("10.0.0.1/32"), m("10.0.0.2/32")}
	whole, ok := s.WholeSet("s:x")
	require.True(t, ok)
	require.Equal(t, view.IPSet{ID: "s:x", Type: view.SetNet, Members: want}, whole)
	for i := range 200 { // more than the set is large
		fresh := m(fmt.Sprintf("10.0.1.%d/32", i))
		apply(s, view.IPSetDelta{ID: "s:x", Added: []view.Member{fresh}})
		want = append(want, fresh)
	}
	require.Len(t, whole.Members, 2, "who has the set may keep it")
	whole, _ = s.WholeSet("s:x")
	require.ElementsMatch(t, want, whole.Members)
	s.Apply(view.Batch{Removes: []view.Key{whole.Key()}})
	_, ok = s.WholeSet("s:x")
	require.False(t, ok)
}

func TestNextHopsKnown(t *testing.T) {
	hop := netip.MustParseAddr("10.0.0.1")
	s := state.New("n")
	require.True(t, s.NextHopsKnown(), "there are none")
	s.SetPath(state.Path{Prefix: netip.MustParsePrefix("10.1.0.0/26"), Ways: &state.Ways{NextHops: []netip.Addr{hop}}})
	require.False(t, s.NextHopsKnown())
	require.Equal(t, state.Routes, s.SetHost(state.Host{NextHops: map[netip.Addr]state.NextHop{hop: {}}}))
	require.True(t, s.NextHopsKnown(), "that there is no way is known too")
	require.Zero(t, s.SetHost(state.Host{NextHops: map[netip.Addr]state.NextHop{hop: {}}}), "nothing new")
	require.Equal(t, state.All, s.SetHost(state.Host{Interfaces: map[string]state.Interface{"eth0": {MTU: 1}}}))
	require.Equal(t, state.All, s.SetHost(state.Host{Interfaces: map[string]state.Interface{"eth0": {MTU: 1}}, Uplinks: []string{"eth0"}}))
	require.Equal(t, state.All, s.SetHost(state.Host{
		Interfaces: map[string]state.Interface{"eth0": {MTU: 1}}, Uplinks: []string{"eth0"}, Loopback: []netip.Addr{hop},
	}))
}

// A change of this node's own addresses says which interfaces it uses; of another's it does not.
func TestNodes(t *testing.T) {
	s := state.New("n")
	require.Equal(t, state.All, apply(s, view.Node{Name: "n"}))
	require.Equal(t, state.All&^state.Links, apply(s, view.Node{Name: "m"}))
	require.Equal(t, state.All, s.Apply(view.Batch{Removes: []view.Key{view.Node{Name: "n"}.Key()}}))
}

// The first whole view has everything looked at; later ones only what they change.
func TestSynced(t *testing.T) {
	s := state.New("n")
	require.Zero(t, apply(s, view.Secret{Name: "x"}))
	require.False(t, s.Synced)
	require.Equal(t, state.All, s.Apply(view.Batch{InSync: true}))
	require.Zero(t, s.Apply(view.Batch{InSync: true}))
}
