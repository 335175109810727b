package link

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	near = target{peer: netip.MustParseAddr("10.0.0.2")}
	far  = target{peer: netip.MustParseAddr("172.16.0.2")}
)

// kernel answers for routes.
type kernel map[netip.Addr]path

func (k kernel) tracker() *tracker {
	t := newTracker(func(g target) (path, bool) { p, ok := k[g.peer]; return p, ok })
	t.changed(1, state{"eth0", true}, false)
	t.changed(2, state{"eth1", true}, false)
	return t
}

func TestTracker(t *testing.T) {
	lost := func(g target) verdict { return verdict{g.peer, "link eth0 is down"} }
	found := func(g target) verdict { return verdict{peer: g.peer} }
	down, up := state{"eth0", false}, state{"eth0", true}

	t.Run("both are lost with the only link, and come back", func(t *testing.T) {
		k := kernel{near.peer: {1, true}, far.peer: {1, false}}
		tr := k.tracker()
		require.Empty(t, tr.watch([]target{near, far}))
		require.Equal(t, []verdict{lost(near), lost(far)}, tr.changed(1, down, false))
		require.Empty(t, tr.changed(1, down, false), "said once")
		require.Equal(t, "link eth0 is down", tr.state(near.peer))
		require.True(t, tr.anyLost())
		require.Equal(t, []verdict{found(near), found(far)}, tr.changed(1, up, false))
		require.False(t, tr.anyLost())
	})
	t.Run("another link is no concern", func(t *testing.T) {
		tr := kernel{near.peer: {1, true}}.tracker()
		tr.watch([]target{near})
		require.Empty(t, tr.changed(2, state{"eth1", false}, false))
		require.Empty(t, tr.changed(9, state{"cali1", true}, false))
	})
	t.Run("links that matter", func(t *testing.T) {
		k := kernel{near.peer: {1, true}, far.peer: {2, false}}
		tr := k.tracker()
		require.False(t, tr.matters(1), "nobody is to be reached")
		tr.watch([]target{near, far})
		for index, want := range map[int]bool{1: true, 2: true, 9: false} {
			require.Equal(t, want, tr.matters(index), index)
		}
		tr.changed(1, down, false)
		require.True(t, tr.matters(9), "whoever is lost may come back by any link")
		tr.changed(1, up, false)
		require.False(t, tr.matters(9))
		delete(k, near.peer)
		tr.watch([]target{{peer: near.peer, source: far.peer}})
		require.True(t, tr.matters(9), "it is not known how to reach it")
	})
	t.Run("a peer behind gateways has another way", func(t *testing.T) {
		k := kernel{near.peer: {1, true}, far.peer: {1, false}}
		tr := k.tracker()
		tr.watch([]target{near, far})
		k[near.peer], k[far.peer] = path{2, false}, path{2, false} // the default route
		require.Equal(t, []verdict{lost(near)}, tr.changed(1, down, false), "one on the link is lost whatever the default route says")
		require.Empty(t, tr.changed(9, state{"cali1", true}, false))
		k[near.peer] = path{1, true}
		require.Equal(t, []verdict{found(near)}, tr.changed(1, up, false))
		require.Equal(t, []verdict{{far.peer, "link eth1 is down"}}, tr.changed(2, state{"eth1", false}, false))
	})
	t.Run("a link that is deleted", func(t *testing.T) {
		k := kernel{near.peer: {1, true}}
		tr := k.tracker()
		tr.watch([]target{near})
		require.Equal(t, []verdict{lost(near)}, tr.changed(1, up, true))
		k[near.peer] = path{2, true}
		require.Equal(t, []verdict{found(near)}, tr.refresh())
	})
	t.Run("what happened while nobody watched", func(t *testing.T) {
		k := kernel{near.peer: {1, true}, far.peer: {1, false}}
		tr := k.tracker()
		tr.watch([]target{near, far})
		require.Empty(t, tr.are(map[int]state{1: up, 2: up}))
		k[far.peer] = path{3, false}
		require.Equal(t, []verdict{lost(near)}, tr.are(map[int]state{2: up, 3: {"eth2", true}}), "the other is reached by a link that is new")
		require.Equal(t, []verdict{found(near)}, tr.are(map[int]state{1: up, 3: {"eth2", true}}))
	})
	t.Run("the route comes later than the link", func(t *testing.T) {
		k := kernel{near.peer: {1, true}}
		tr := k.tracker()
		tr.watch([]target{near})
		tr.changed(1, down, false)
		delete(k, near.peer)
		require.Empty(t, tr.changed(1, up, false))
		k[near.peer] = path{1, true}
		require.Equal(t, []verdict{found(near)}, tr.refresh())
	})
	t.Run("no way at first is no loss", func(t *testing.T) {
		k := kernel{}
		tr := k.tracker()
		require.Empty(t, tr.watch([]target{near}))
		require.Empty(t, tr.changed(1, down, false))
		k[near.peer] = path{1, true}
		require.Empty(t, tr.changed(1, up, false))
		require.Equal(t, []verdict{lost(near)}, tr.changed(1, down, false))
	})
	t.Run("a lost peer that is taken out, or gets another source address, is not held back", func(t *testing.T) {
		tr := kernel{near.peer: {1, true}}.tracker()
		tr.watch([]target{near})
		tr.changed(1, down, false)
		other := near
		other.source = netip.MustParseAddr("10.0.0.1")
		require.Equal(t, []verdict{found(near)}, tr.watch([]target{other}))
		tr.changed(1, up, false)
		require.Equal(t, []verdict{lost(near)}, tr.changed(1, down, false))
		require.Equal(t, []verdict{found(near)}, tr.watch(nil))
	})
}
