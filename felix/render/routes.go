package render

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/prefixes"
)

// newRoutes computes all routes but bird's. Each has one source (design: "Routes, one source per kind"): blocks of tunnelled
// pools come from typha's table, all else remote from bird. Where several speak of one destination, a local workload wins
// over the table, the table over the blackhole of a block of this node, and that over bird.
func newRoutes(s *state.State) *routes {
	r := &routes{state: s, families: families(s), direct: map[netip.Prefix]bool{}}
	for _, p := range s.Pools {
		if cidr, err := netip.ParsePrefix(p.Spec.CIDR); err == nil && tunnelOf(p) != view.TunnelNone {
			r.tunnelled = append(r.tunnelled, cidr.Masked())
		}
	}
	slices.SortFunc(r.tunnelled, comparePrefixes)
	for _, i := range s.Host.Interfaces {
		for _, a := range i.Addresses {
			r.connected = append(r.connected, a.Masked())
		}
	}
	slices.SortFunc(r.connected, comparePrefixes)
	r.local()
	table := slices.Sorted(maps.Keys(s.Remote)) // two nodes may have one destination while it moves: always the same wins
	for _, key := range table {
		if s.Remote[key].Send == view.TunnelNone {
			r.direct[s.Remote[key].Dst] = true
		}
		r.remote(s.Remote[key])
	}
	for _, key := range table {
		r.own(s.Remote[key])
	}
	return r
}

// routes is one computation of all routes.
type routes struct {
	state     *state.State
	families  []family
	tunnelled []netip.Prefix        // pools whose routes come from typha's table
	direct    map[netip.Prefix]bool // destinations that the table leaves to bird, whatever their pool asks for by now
	connected []netip.Prefix        // subnets of the host's interfaces, whose routes are the kernel's
	out       routeTable

	last     *state.Ways       // the ways that were resolved last,
	lastHops []desired.NextHop // and what they came to: paths by the thousand have the same
}

// routeTable is routes by destination, of which each has one. None has nil: no route is to lead there.
type routeTable = prefixes.Map[*desired.Route]

// put adds a route unless a better source has spoken for the destination.
func (r *routes) put(route desired.Route) {
	if !r.out.Has(route.Dst) {
		kept := route
		r.out.Set(route.Dst, &kept)
	}
}

// local adds the routes to the node's endpoints. An address of one that is leaving has no route at all: the blackhole of
// its block, or the lack of a route, keeps others from getting its packets.
func (r *routes) local() {
	names := slices.Sorted(maps.Keys(r.state.Local))
	for _, name := range names {
		if e := r.state.Local[name]; !e.Leaving {
			for _, a := range e.Addresses {
				route := r.workload(a, e.Interface)
				if view, known := r.state.View(e); known && view.Peering != nil && !route.Src.IsValid() {
					route.Src = r.address(a.Is6()) // not one of the pod's gateways, which its interface has
				}
				r.put(route)
			}
		}
	}
	for _, name := range names {
		for _, a := range r.state.Local[name].Addresses {
			if p := netip.PrefixFrom(a, a.BitLen()); !r.out.Has(p) {
				r.out.Set(p, nil)
			}
		}
	}
	for _, f := range floating(r.state) {
		r.put(r.workload(f.External, f.link))
	}
}

// workload is the route to an address of a local workload.
func (r *routes) workload(a netip.Addr, link string) desired.Route {
	c := r.state.Config.Spec
	route := r.sourced(desired.WorkloadRoute(a, link, value(c.DeviceRouteProtocol, desired.ProtocolBoot)))
	priority := c.IPv4NormalRoutePriority
	if a.Is6() {
		priority = c.IPv6NormalRoutePriority
	}
	route.Metric = value(priority, desired.WorkloadMetric)
	return route
}

// address is the node's own of a family; not valid if none of the host's interfaces has one.
func (r *routes) address(v6 bool) netip.Addr {
	for _, f := range r.families {
		if f.v6 == v6 && f.parent != "" {
			return f.address.Addr()
		}
	}
	return netip.Addr{}
}

// sourced gives a route the source address that the configuration wants the host's own packets to have.
func (r *routes) sourced(route desired.Route) desired.Route {
	text := r.state.Config.Spec.DeviceRouteSourceAddress
	if route.Dst.Addr().Is6() {
		text = r.state.Config.Spec.DeviceRouteSourceAddressIPv6
	}
	if src, err := netip.ParseAddr(text); err == nil && src.Is6() == route.Dst.Addr().Is6() {
		route.Src = src
	}
	return route
}

// own adds the blackhole of a block of this node.
func (r *routes) own(at view.Route) {
	if at.Node != r.state.Node || at.Type != view.RouteBlock {
		return
	}
	if hole, ok := desired.BlockBlackhole(at.Dst); ok {
		r.put(hole)
	}
}

// remote adds the route to a destination on another node, where typha's table decides.
func (r *routes) remote(at view.Route) {
	node, known := r.state.Nodes[at.Node]
	i := slices.IndexFunc(r.families, func(f family) bool { return f.has(at.Dst) })
	if at.Node == r.state.Node || !known || i < 0 || r.families[i].parent == "" {
		return
	}
	f := r.families[i]
	switch {
	case at.CrossSubnet && at.Send != view.TunnelNone && f.sameSubnet(node) && f.parent != desired.Loopback:
		r.put(r.sourced(desired.DirectRoute(at.Dst, f.of(node), f.parent, desired.ProtocolMuslin)))
	case at.Send == view.TunnelVXLAN && f.vxlan:
		r.byVXLAN(at.Dst, f, node)
	case at.Send == view.TunnelIPIP && f.ipip && f.of(node).IsValid() && f.of(node) != f.address.Addr():
		r.put(r.sourced(desired.IPIPRoute(at.Dst, f.of(node), f.ipipMTU, desired.ProtocolMuslin)))
	} // direct pools are bird's; without the tunnel that its pool wants there is no route: see Problems
}

// byVXLAN adds the route to a destination behind another node's VXLAN tunnel end.
func (r *routes) byVXLAN(dst netip.Prefix, f family, node view.Node) {
	vtep, _, ok := f.vtep(node)
	own, _, ready := f.vtep(r.state.Nodes[r.state.Node])
	if !ok || !ready || own == vtep {
		return
	}
	protocol := value(r.state.Config.Spec.DeviceRouteProtocol, desired.ProtocolBoot)
	if dst.IsSingleIP() && dst.Addr() == vtep {
		r.put(r.sourced(desired.VTEPRoute(vtep, f.device, f.mtu, protocol)))
		return
	}
	r.put(r.sourced(desired.VXLANRoute(dst, vtep, f.device, f.mtu, protocol)))
}

// learned is the route that bird found, unless its destination lies in a pool whose routes come from typha's table.
// While such a pool changes its mode the table still says "direct" for its blocks, until all nodes accept the tunnel. A
// peer that announces the node's own subnet, as routers do, must not take the place of the kernel's route to it.
func (r *routes) learned(dst netip.Prefix, ways *state.Ways) (route desired.Route, ok bool) {
	inTunnelled := func(pool netip.Prefix) bool { return pool.Bits() <= dst.Bits() && pool.Contains(dst.Addr()) }
	if slices.Contains(r.connected, dst) || !r.direct[dst] && slices.ContainsFunc(r.tunnelled, inTunnelled) {
		return route, false
	}
	hops := r.resolved(ways)
	return desired.Route{Dst: dst, NextHops: hops, Protocol: desired.ProtocolMuslin, Metric: int(ways.Metric), Table: desired.TableMain}, len(hops) > 0
}

// resolved are the ways by which the kernel reaches next hops, each once. Routes share the slice.
func (r *routes) resolved(ways *state.Ways) []desired.NextHop {
	if ways == r.last || r.last != nil && slices.Equal(ways.NextHops, r.last.NextHops) {
		return r.lastHops
	}
	var hops []desired.NextHop
	for _, way := range ways.NextHops {
		if at, ok := r.state.Host.NextHops[way]; ok && at.Link != "" {
			next := desired.NextHop{Via: at.Via, Link: at.Link, OnLink: at.Via == way}
			if !slices.Contains(hops, next) {
				hops = append(hops, next)
			}
		}
	}
	r.last, r.lastHops = ways, hops
	return hops
}

// Announced are the prefixes that this node owns and bird should announce once they are programmed: its blocks, single addresses
// that it borrowed from other nodes' blocks, and the floating addresses of its workloads.
func Announced(s *state.State) []netip.Prefix {
	claimed := map[netip.Prefix]bool{} // typha's table has floating addresses whether this node programs them or not
	for _, w := range s.Workloads {
		for _, n := range w.NATs {
			claimed[netip.PrefixFrom(n.External, n.External.BitLen())] = true
		}
	}
	var out []netip.Prefix
	for _, r := range s.Remote {
		if r.Node == s.Node && r.Type != view.RouteTunnel && !claimed[r.Dst] {
			out = append(out, r.Dst)
		}
	}
	for _, f := range floating(s) {
		out = append(out, netip.PrefixFrom(f.External, f.External.BitLen()))
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
