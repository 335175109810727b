package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Routing constants of linux/rtnetlink.h and of Calico's conventions (spec §4.1, §4.2).
const (
	TableMain = 254

	ProtocolBoot   = 3  // default of DeviceRouteProtocol: workload and VXLAN routes
	ProtocolBIRD   = 12 // routes of a BIRD that ran here before
	ProtocolMuslin = 80 // routes that belong to felix wherever they are

	// WorkloadMetric is the metric of routes to local workloads; all others have 0.
	WorkloadMetric = 1024
)

// RouteKind is what a route does with packets.
type RouteKind uint8

// The kinds of route.
const (
	Unicast   RouteKind = iota // forward to a next hop
	Blackhole                  // drop silently
	Throw                      // end the look-up in this table
)

// String is the keyword of ip-route(8).
func (k RouteKind) String() string {
	switch k {
	case Unicast:
		return "unicast"
	case Blackhole:
		return "blackhole"
	case Throw:
		return "throw"
	}
	return fmt.Sprintf("RouteKind(%d)", uint8(k))
}

// NextHop is where a unicast route sends packets.
type NextHop struct {
	Via    netip.Addr // invalid: the destination is on the link itself
	Link   string     // name of the device; required, resolved to an index when the route is written
	OnLink bool       // Via need not be reachable by another route
}

// RouteKey names a route: the kernel has at most one for each. (For IPv4 the kernel would also tell routes apart by
// TOS; felix writes and owns only TOS 0.)
type RouteKey struct {
	Table  int
	Dst    netip.Prefix // masked
	Metric int
}

// String is the route's name in messages: "10.1.2.0/26", with table and metric where they are not the usual.
func (k RouteKey) String() string {
	var b strings.Builder
	b.WriteString(k.Dst.String())
	if k.Table != TableMain {
		fmt.Fprintf(&b, " table %d", k.Table)
	}
	if k.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", k.Metric)
	}
	return b.String()
}

// Route is one route.
type Route struct {
	Dst       netip.Prefix // masked
	Kind      RouteKind
	NextHops  []NextHop // exactly one, or several for equal-cost multipath; none unless Unicast
	LinkScope bool      // scope link: a destination on the wire, no gateway
	Protocol  int       // who wrote it: ProtocolBoot, ProtocolMuslin, …
	Metric    int
	MTU       int        // 0: the device's
	Src       netip.Addr // preferred source of the host's own packets; invalid: the kernel chooses
	Table     int        // 0 means TableMain
}

// Key is the route's key.
func (r Route) Key() RouteKey {
	t := r.Table
	if t == 0 {
		t = TableMain
	}
	return RouteKey{Table: t, Dst: r.Dst, Metric: r.Metric}
}

// Equal tells whether two routes are the same to the kernel. The order of next hops does not matter.
func (r Route) Equal(o Route) bool {
	if r.Key() != o.Key() || r.Kind != o.Kind || r.LinkScope != o.LinkScope || r.Protocol != o.Protocol ||
		r.MTU != o.MTU || r.Src != o.Src || len(r.NextHops) != len(o.NextHops) {
		return false
	}
	for _, h := range r.NextHops {
		if !slices.Contains(o.NextHops, h) {
			return false
		}
	}
	return true
}

// String is the route as ip-route(8) would print it.
func (r Route) String() string {
	var b strings.Builder
	if r.Kind != Unicast {
		b.WriteString(r.Kind.String() + " ")
	}
	b.WriteString(r.Dst.String())
	for _, h := range r.NextHops {
		if len(r.NextHops) > 1 {
			b.WriteString(" nexthop")
		}
		if h.Via.IsValid() {
			b.WriteString(" via " + h.Via.String())
		}
		b.WriteString(" dev " + h.Link)
		if h.OnLink {
			b.WriteString(" onlink")
		}
	}
	if r.Table != 0 && r.Table != TableMain {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	fmt.Fprintf(&b, " proto %d", r.Protocol)
	if r.LinkScope {
		b.WriteString(" scope link")
	}
	if r.Src.IsValid() {
		b.WriteString(" src " + r.Src.String())
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	return b.String()
}

// WorkloadRoute is the route to a local workload's address (spec §4.1): on the host side of its veth pair, scope link,
// no gateway.
func WorkloadRoute(addr netip.Addr, link string, protocol int) Route {
	return Route{
		Dst: netip.PrefixFrom(addr, addr.BitLen()), NextHops: []NextHop{{Link: link}}, LinkScope: true,
		Protocol: protocol, Metric: WorkloadMetric, Table: TableMain,
	}
}

// BlockBlackhole is the route that drops packets for the unassigned addresses of a block of this node, so that they do
// not loop. A block of one address gets none (spec §4.2); ok is false then.
func BlockBlackhole(block netip.Prefix) (r Route, ok bool) {
	return Route{Dst: block.Masked(), Kind: Blackhole, Protocol: ProtocolMuslin, Table: TableMain}, !block.IsSingleIP()
}

// VXLANRoute is the route to a block on another node through the VXLAN device: by the remote tunnel address, which is
// on the link by decree.
func VXLANRoute(dst netip.Prefix, vtep netip.Addr, device string, mtu, protocol int) Route {
	return Route{
		Dst: dst.Masked(), NextHops: []NextHop{{Via: vtep, Link: device, OnLink: true}},
		Protocol: protocol, MTU: mtu, Table: TableMain,
	}
}

// IPIPRoute is the route to a block on another node through the IP-in-IP device: by that node's address, which is the
// outer destination.
func IPIPRoute(dst netip.Prefix, node netip.Addr, mtu, protocol int) Route {
	return Route{
		Dst: dst.Masked(), NextHops: []NextHop{{Via: node, Link: IPIPDevice, OnLink: true}},
		Protocol: protocol, MTU: mtu, Table: TableMain,
	}
}

// VTEPRoute is the route to a remote VXLAN tunnel address that lies in no block of its node: it is the tunnel end
// itself, so it has no gateway.
func VTEPRoute(vtep netip.Addr, device string, mtu, protocol int) Route {
	return Route{
		Dst: netip.PrefixFrom(vtep, vtep.BitLen()), NextHops: []NextHop{{Link: device}}, LinkScope: true,
		Protocol: protocol, MTU: mtu, Table: TableMain,
	}
}

// DirectRoute is the route to a block on another node of the same subnet, by that node's address.
func DirectRoute(dst netip.Prefix, node netip.Addr, parent string, protocol int) Route {
	return Route{
		Dst: dst.Masked(), NextHops: []NextHop{{Via: node, Link: parent, OnLink: true}},
		Protocol: protocol, Table: TableMain,
	}
}
