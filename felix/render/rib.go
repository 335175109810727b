package render

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/prefixes"
)

// RIB holds the routes that are wanted, and computes what changes of them, at the cost of what changed: bird may bring a
// hundred thousand paths, of which a few change at a time. The sum of its changes is what Routes returns. The zero value is
// ready, and holds none.
type RIB struct {
	base   *routes                      // all routes but bird's, and what bird's depend on
	metric prefixes.Map[int]            // of bird's routes that are there
	hops   map[netip.Addr]state.NextHop // as base saw them
	encaps map[netip.Prefix]desired.Encap
}

// Update follows the state. touched says what of it may have changed since the last call.
func (b *RIB) Update(s *state.State, touched state.Section) (changes desired.Delta[desired.RouteKey, desired.Route], encaps desired.Delta[netip.Prefix, desired.Encap]) {
	changed := s.ChangedPaths()
	first := b.base == nil
	if first {
		b.base, b.encaps, touched = &routes{}, map[netip.Prefix]desired.Encap{}, state.Routes
	}
	if touched&state.Routes != 0 {
		old, next := b.base, newRoutes(s)
		changes = difference(&old.out, &next.out)
		if first || !maps.Equal(b.hops, s.Host.NextHops) || !next.judgesAs(old) {
			changed = everyPath(s, &b.metric)
		} else { // bird's routes give way, and come back, where others' come and go
			symmetric(&old.out, &next.out, &changed)
		}
		b.base, b.hops = next, s.Host.NextHops
	}
	for prefix := range changed.All() {
		b.judge(s, prefix, &changes)
	}
	return changes, b.follow(changes)
}

// judge computes the route of bird's to a prefix.
func (b *RIB) judge(s *state.State, prefix netip.Prefix, d *desired.Delta[desired.RouteKey, desired.Route]) {
	route, ok := desired.Route{}, false
	if ways, there := s.Paths.Get(prefix); there && !b.base.out.Has(prefix) {
		route, ok = b.base.learned(prefix, ways)
	}
	if metric, was := b.metric.Get(prefix); was && (!ok || metric != route.Metric) {
		b.metric.Delete(prefix)
		key := desired.Route{Dst: prefix, Metric: metric}.Key()
		if other, _ := b.base.out.Get(prefix); other == nil || other.Key() != key {
			d.Remove(key)
		}
	}
	if ok {
		b.metric.Set(prefix, route.Metric)
		d.Put(route.Key(), route)
	}
}

// follow is what changes of Encaps with the routes.
func (b *RIB) follow(changed desired.Delta[desired.RouteKey, desired.Route]) (d desired.Delta[netip.Prefix, desired.Encap]) {
	for k := range changed.Removed {
		if _, was := b.encaps[k.Dst]; was {
			d.Remove(k.Dst)
		}
	}
	for k, r := range changed.Set {
		encap, is := encapOf(r)
		have, was := b.encaps[k.Dst]
		switch {
		case is && was && have == encap:
			delete(d.Removed, k.Dst) // its route has another metric
		case is:
			d.Put(k.Dst, encap)
		case was:
			d.Remove(k.Dst)
		}
	}
	for dst := range d.Removed {
		delete(b.encaps, dst)
	}
	maps.Copy(b.encaps, d.Set)
	return d
}

// judgesAs tells whether two computations make the same of each path.
func (r *routes) judgesAs(o *routes) bool {
	return slices.Equal(r.tunnelled, o.tunnelled) && slices.Equal(r.connected, o.connected) &&
		(len(r.tunnelled) == 0 || maps.Equal(r.direct, o.direct))
}

// everyPath is the prefixes of all paths, and of all routes that are there.
func everyPath(s *state.State, there *prefixes.Map[int]) (all prefixes.Map[struct{}]) {
	for p := range s.Paths.All() {
		all.Set(p, struct{}{})
	}
	for p := range there.All() {
		all.Set(p, struct{}{})
	}
	return all
}

// symmetric adds the destinations of one of two tables only.
func symmetric(a, b *routeTable, to *prefixes.Map[struct{}]) {
	for _, pair := range [][2]*routeTable{{a, b}, {b, a}} {
		for p := range pair[0].All() {
			if !pair[1].Has(p) {
				to.Set(p, struct{}{})
			}
		}
	}
}

// difference is the change that makes next of prev.
func difference(prev, next *routeTable) (d desired.Delta[desired.RouteKey, desired.Route]) {
	for dst, old := range prev.All() {
		if now, _ := next.Get(dst); old != nil && (now == nil || now.Key() != old.Key()) {
			d.Remove(old.Key())
		}
	}
	for dst, now := range next.All() {
		if old, _ := prev.Get(dst); now != nil && (old == nil || !old.Equal(*now)) {
			d.Put(now.Key(), *now)
		}
	}
	return d
}
