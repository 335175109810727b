package render

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Routes computes all routes. Each has one source (design: "Routes, one source per kind"): blocks of tunnelled pools
// come from typha's table, all else remote from bird; a local workload always wins.
func Routes(s *state.State) map[desired.RouteKey]desired.Route {
	out := map[desired.RouteKey]desired.Route{}
	put := func(r desired.Route) { out[r.Key()] = r }

	fams := families(s)
	for i, f := range fams {
		fams[i] = f.withParent(s)
	}
	for _, r := range s.Remote {
		for _, f := range fams {
			if f.has(r.Dst) {
				remote(s, f, r, put)
			}
		}
		if r.Node == s.Node && r.Type == view.RouteBlock {
			if hole, ok := desired.BlockBlackhole(r.Dst); ok {
				put(hole)
			}
		}
	}
	for _, p := range s.Paths {
		learned(s, p, put)
	}
	protocol := value(s.Config.Spec.DeviceRouteProtocol, desired.ProtocolBoot)
	for _, e := range s.Local {
		for _, a := range e.Addresses {
			drop(out, netip.PrefixFrom(a, a.BitLen()))
			if !e.Leaving {
				put(desired.WorkloadRoute(a, e.Interface, protocol))
			}
		}
	}
	return out
}

// remote adds the route to a destination on another node, where typha's table decides.
func remote(s *state.State, f family, r view.Route, put func(desired.Route)) {
	node, known := s.Nodes[r.Node]
	if r.Node == s.Node || !known || f.parent == "" {
		return
	}
	if r.CrossSubnet && r.Send != view.TunnelNone && f.sameSubnet(node) {
		put(desired.DirectRoute(r.Dst, f.of(node), f.parent, desired.ProtocolMuslin))
		return
	}
	if r.Send != view.TunnelVXLAN {
		return // direct pools are bird's; IP-in-IP has no device on this kernel
	}
	vtep, _, ok := f.vtep(node)
	own, _, ready := f.vtep(s.Nodes[s.Node])
	if !ok || !ready || own == vtep {
		return
	}
	protocol, mtu := value(s.Config.Spec.DeviceRouteProtocol, desired.ProtocolBoot), f.vxlanMTU(s)
	if r.Dst.IsSingleIP() && r.Dst.Addr() == vtep {
		put(desired.VTEPRoute(vtep, f.device, mtu, protocol))
		return
	}
	put(desired.VXLANRoute(r.Dst, vtep, f.device, mtu, protocol))
}

// learned adds the route that bird found, unless its destination lies in a pool whose routes come from typha's table.
func learned(s *state.State, p state.Path, put func(desired.Route)) {
	for _, pool := range s.Pools {
		cidr, err := netip.ParsePrefix(pool.Spec.CIDR)
		if err == nil && cidr.Overlaps(p.Prefix) && cidr.Bits() <= p.Prefix.Bits() && tunnelOf(pool) != view.TunnelNone {
			return
		}
	}
	r := desired.Route{Dst: p.Prefix, Protocol: desired.ProtocolMuslin, Metric: int(p.Metric), Table: desired.TableMain}
	for _, hop := range p.NextHops {
		if at, ok := s.Host.NextHops[hop]; ok && at.Link != "" {
			next := desired.NextHop{Via: at.Via, Link: at.Link, OnLink: at.Via == hop}
			if !slices.Contains(r.NextHops, next) {
				r.NextHops = append(r.NextHops, next)
			}
		}
	}
	if len(r.NextHops) > 0 {
		put(r)
	}
}

// drop removes every other route to a destination that is local.
func drop(out map[desired.RouteKey]desired.Route, dst netip.Prefix) {
	for key := range out {
		if key.Dst == dst {
			delete(out, key)
		}
	}
}

// Announced are the prefixes that this node owns and bird should announce once they are programmed: its blocks, and
// single addresses that it borrowed from other nodes' blocks.
func Announced(s *state.State) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range s.Remote {
		if r.Node == s.Node && r.Type != view.RouteTunnel {
			out = append(out, r.Dst)
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
