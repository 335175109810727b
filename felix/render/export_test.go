package render

import (
	"net/netip"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Routes computes all routes from scratch: what RIB must come to by differences.
func Routes(s *state.State) map[desired.RouteKey]desired.Route {
	r := newRoutes(s)
	for prefix, ways := range s.Paths.All() {
		if route, ok := r.learned(prefix, ways); ok {
			r.put(route)
		}
	}
	out := map[desired.RouteKey]desired.Route{}
	for _, route := range r.out.All() {
		if route != nil {
			out[route.Key()] = *route
		}
	}
	return out
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

// Whole is the whole firewall of a node.
type Whole struct {
	Settings  desired.Settings
	Sets      map[string]desired.Set
	Chains    map[string]desired.Chain
	Workloads map[string]desired.Workload
	Hosts     map[string]desired.Host
}

// FirewallState computes the firewall from scratch: what Firewall must come to by differences.
func FirewallState(s *state.State) Whole {
	w := Whole{
		Settings: settings(s), Sets: ownSets(s), Chains: map[string]desired.Chain{}, Workloads: map[string]desired.Workload{},
		Hosts: hosts(s, s.ListLacks),
	}
	for id := range s.Sets {
		set, _ := s.WholeSet(id)
		w.Sets[id] = desired.Set{Type: set.Type, Members: set.Members}
	}
	put := func(chains ...desired.Chain) {
		for _, c := range chains {
			w.Chains[c.Name] = c
		}
	}
	leaving := map[string]bool{} // egress policies of the hosts' normal pass
	for id, l := range s.Lists {
		var in passes
		for _, e := range s.HostEPs {
			for pass, named := range listsOf(e) {
				if named == id {
					in |= 1 << pass
				}
			}
		}
		put(chainsOf(l, in)...)
		if !in.has(desired.Normal) {
			continue
		}
		for _, t := range l.Tiers {
			for _, id := range t.Egress {
				leaving[id] = true
			}
		}
		for _, id := range l.Profiles {
			leaving[id] = true
		}
	}
	for id, p := range s.Policies {
		pair := desired.PolicyChains(p, s.Config.Spec.LogPrefix)
		if leaving[id] {
			pair[desired.Egress].In |= desired.Mangle
		}
		put(pair[:]...)
	}
	put(failsafes(s, len(w.Hosts) > 0)...)
	for name, e := range s.Local {
		x := desired.Workload{Endpoint: e.ID.String()}
		if !e.Leaving {
			x.Addresses = e.Addresses
		}
		if why := s.Closed(e); len(why) > 0 {
			x.ClosedBecause = why[0]
		} else {
			v, _ := s.View(e)
			x.Ingress, x.Egress = desired.ListChain(v.PolicyList, desired.Ingress), desired.ListChain(v.PolicyList, desired.Egress)
			if maySpoof(s) {
				x.AllowedSources = v.AllowSpoofedPrefixes
			}
		}
		w.Workloads[name] = x
	}
	needs6 := poolOf6(s) || len(w.Hosts) > 0
	for _, x := range w.Workloads {
		needs6 = needs6 || maySend6(x)
	}
	w.Settings.NoIPv6 = !needs6
	return w
}
