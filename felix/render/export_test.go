package render

import (
	"net/netip"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Routes computes all routes from scratch: what RIB must come to by differences.
func Routes(s *state.State) map[desired.RouteKey]desired.Route {
	r := newRoutes(s)
	for prefix, ways := range s.Paths {
		if route, ok := r.learned(prefix, ways); ok {
			r.put(route)
		}
	}
	return r.out
}

// Encaps computes from scratch the outer destinations that RIB keeps by differences.
func Encaps(routes map[desired.RouteKey]desired.Route) map[netip.Prefix]desired.Encap {
	out := map[netip.Prefix]desired.Encap{}
	for _, r := range routes {
		if e, ok := encapOf(r); ok {
			out[r.Dst] = e
		}
	}
	return out
}
