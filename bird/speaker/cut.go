package speaker

import (
	"net/netip"
	"slices"
)

// cuts are the peers whose paths are hidden since they are lost, and what lies behind them. The value tells whether others
// have sent best paths by way of the peer, so that the engine must be told not to choose them.
type cuts map[netip.Addr]*cutOff

type cutOff struct{ detour bool }

// hide tells whether readers must not see a path. news tells that the engine must not choose it either.
func (c cuts) hide(p *Path) (hidden, news bool) {
	if len(c) == 0 || !p.Peer.IsValid() {
		return false, false
	}
	if _, lost := c[p.Peer]; lost {
		return true, false
	}
	o := c[p.NextHop]
	if o == nil {
		return false, false
	}
	news = !o.detour
	o.detour = true
	return true, news
}

// cut hides the paths of a peer, and those of others over it as next hop.
func (t *bestTable) cut(peer netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cuts[peer] != nil {
		return
	}
	t.cuts[peer] = &cutOff{}
	t.publishOver(peer)
}

// mend shows them again, but for the paths of the peer itself: its session has ended meanwhile.
func (t *bestTable) mend(peer netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cuts[peer] == nil {
		return
	}
	delete(t.cuts, peer)
	sent := func(p Path) bool { return p.Peer == peer }
	for prefix, e := range t.entries.All() {
		if slices.ContainsFunc(e.all.list(), sent) {
			t.put(prefix, slices.DeleteFunc(slices.Clone(e.all.list()), sent))
		}
	}
	t.publishOver(peer)
}

// show shows all of them again: the session has not ended.
func (t *bestTable) show(peer netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.cuts, peer)
	t.publishOver(peer)
}

// publishOver looks again at what depends on a peer. Whoever calls holds mu.
func (t *bestTable) publishOver(peer netip.Addr) {
	for prefix, e := range t.entries.All() {
		if slices.ContainsFunc(e.all.list(), func(p Path) bool { return p.Peer == peer || p.NextHop == peer }) {
			t.publish(prefix, e)
		}
	}
	t.compact()
}
