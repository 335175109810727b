package link

import (
	"net/netip"
	"slices"
)

// path is how the kernel reaches a peer.
type path struct {
	link   int
	direct bool // the peer is on the link itself, not behind a gateway
}

// target is a peer as the configuration has it.
type target struct{ peer, source netip.Addr }

// verdict is news about a peer; an empty reason says that it can be reached again.
type verdict struct {
	peer   netip.Addr
	reason string
}

// tracker knows the links, and by which of them peers are reached. It asks the kernel through resolve, and decides the rest.
type tracker struct {
	resolve func(target) (path, bool)
	links   map[int]state
	peers   map[netip.Addr]*track
}

type state struct {
	name string
	up   bool // administratively, and with a carrier
}

type track struct {
	target
	path  path
	known bool   // path is, or was, a working one
	lost  string // why; empty while it is not
}

func newTracker(resolve func(target) (path, bool)) *tracker {
	return &tracker{resolve: resolve, links: map[int]state{}, peers: map[netip.Addr]*track{}}
}

// watch makes these the peers. Whoever is lost and no longer among them is reported as found.
func (t *tracker) watch(targets []target) []verdict {
	want, out := map[netip.Addr]bool{}, []verdict(nil)
	for _, g := range targets {
		want[g.peer] = true
		one := t.peers[g.peer]
		if one == nil || one.target != g {
			if one != nil && one.lost != "" {
				out = append(out, verdict{peer: g.peer})
			}
			one = &track{target: g}
			t.peers[g.peer] = one
		}
		t.locate(one, true)
	}
	for a, one := range t.peers {
		if want[a] {
			continue
		}
		if one.lost != "" {
			out = append(out, verdict{peer: a})
		}
		delete(t.peers, a)
	}
	return sorted(out)
}

// locate looks for a working path, and tells whether there is one. A peer that was on a link is not looked for behind
// gateways, unless anywhere says so: what is left when a link goes down is often a default route.
func (t *tracker) locate(one *track, anywhere bool) bool {
	p, ok := t.resolve(one.target)
	if !ok || !t.links[p.link].up || one.known && one.path.direct && !p.direct && !anywhere {
		return false
	}
	one.path, one.known = p, true
	return true
}

// are takes news of all links. Those that are up come first: a peer may have another way.
func (t *tracker) are(now map[int]state) []verdict {
	var out []verdict
	for _, up := range []bool{true, false} {
		for index, s := range now {
			if s.up == up {
				out = append(out, t.changed(index, s, false)...)
			}
		}
	}
	for index := range t.links {
		if _, there := now[index]; !there {
			out = append(out, t.changed(index, state{}, true)...)
		}
	}
	return sorted(out)
}

// matters tells whether news of a link can have a verdict: a peer is reached by it, or one is lost and may be reached by any.
func (t *tracker) matters(index int) bool {
	for _, one := range t.peers {
		if one.lost != "" || !one.known || one.path.link == index {
			return true
		}
	}
	return false
}

// changed takes news of a link; gone says that it no longer exists.
func (t *tracker) changed(index int, now state, gone bool) []verdict {
	before := t.links[index]
	t.links[index] = now
	if gone {
		now = state{name: before.name}
		delete(t.links, index)
	}
	if before.up == now.up {
		return nil
	}
	var out []verdict
	for a, one := range t.peers {
		switch {
		case now.up && (one.lost != "" || !one.known):
			out = append(out, t.find(one, false)...)
		case !now.up && one.lost == "" && one.known && one.path.link == index:
			if !one.path.direct && t.locate(one, true) {
				continue // by another way
			}
			one.lost = "link " + now.name + " is down"
			out = append(out, verdict{a, one.lost})
		}
	}
	return sorted(out)
}

// find looks whether a lost peer can be reached again.
func (t *tracker) find(one *track, anywhere bool) []verdict {
	if !t.locate(one, anywhere) || one.lost == "" {
		return nil
	}
	one.lost = ""
	return []verdict{{peer: one.peer}}
}

// refresh asks the kernel again about all peers: routes change without links doing so.
func (t *tracker) refresh() []verdict {
	var out []verdict
	for _, one := range t.peers {
		out = append(out, t.find(one, true)...)
	}
	return sorted(out)
}

// anyLost tells whether a peer is lost.
func (t *tracker) anyLost() bool {
	for _, one := range t.peers {
		if one.lost != "" {
			return true
		}
	}
	return false
}

// state is why a peer is lost.
func (t *tracker) state(peer netip.Addr) string {
	if one := t.peers[peer]; one != nil {
		return one.lost
	}
	return ""
}

func sorted(list []verdict) []verdict {
	slices.SortStableFunc(list, func(a, b verdict) int { return a.peer.Compare(b.peer) })
	return list
}
