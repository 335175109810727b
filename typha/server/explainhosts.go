package server

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/verdict"
	"github.com/muslin-net/muslin/typha/views"
)

// loopback is by what a host reaches itself.
const loopback = "lo"

// passage is a node that a packet goes through.
type passage struct {
	scope views.Scope
	node  verdict.Node
	way   verdict.Way
}

// passages are the nodes that a packet goes through from src to dst: that of the source, and that of the destination.
func (s *Server) passages(from, to end, src, dst netip.Addr) []passage {
	now := s.cfg.Cache.Snapshot()
	at := func(e end, own netip.Addr, by string, w verdict.Way) passage {
		if by == "" && e.named == nil {
			by = uplink(now.Node(e.scope.Node), own)
		} else if by != "" {
			e.named = nil // it is not by the interface that was meant
		}
		return passage{scope: e.scope, node: s.judging(e, by), way: w}
	}
	if from.scope.Node != "" && from.scope.Node == to.scope.Node {
		if from.host && to.host {
			return []passage{at(from, src, loopback, verdict.Way{FromHost: true}), at(to, dst, loopback, verdict.Way{ToHost: true})}
		}
		meant := from
		if to.host {
			meant = to
		}
		return []passage{at(meant, dst, "", verdict.Way{From: from.endpoint, To: to.endpoint, FromHost: from.host, ToHost: to.host})}
	}
	tunnel := s.tunnel(now, from, to, dst)
	var out []passage
	if from.scope.Node != "" {
		out = append(out, at(from, src, tunnel, verdict.Way{From: from.endpoint, FromHost: from.host}))
	}
	if to.scope.Node != "" {
		out = append(out, at(to, dst, tunnel, verdict.Way{To: to.endpoint, ToHost: to.host}))
	}
	return out
}

// judging is what takes part on an end's node when the packet goes by an interface there; if no interface is known it is
// taken to be that of the first host endpoint.
func (s *Server) judging(e end, iface string) verdict.Node {
	var out verdict.Node
	addrs := s.addressesOf(e.scope.Node, iface)
	fits := func(h *view.HostEndpoint) bool {
		switch {
		case e.named != nil:
			return h.Name == e.named.Name
		case iface == loopback:
			return h.Interface == loopback
		case iface == "":
			return true
		case h.Interface != "":
			return h.Interface == iface
		}
		return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(h.ExpectedIPs, a) })
	}
	for _, h := range s.hostEndpoints(e.scope) {
		switch {
		case h.Interface == "*" && out.Any == nil:
			out.Any = &h
		case h.Interface != "*" && out.Own == nil && fits(&h):
			out.Own = &h
		}
	}
	c := s.configOf(e.scope)
	out.FailsafeIn, out.FailsafeOut = failsafes(c.Spec.FailsafeInboundHostPorts), failsafes(c.Spec.FailsafeOutboundHostPorts)
	out.WorkloadsToHost = !strings.EqualFold(c.Spec.DefaultEndpointToHostAction, "Drop")
	out.VXLANPort = uint16(*c.Spec.VXLANPort) // it has a default
	is := func(b *bool) bool { return b != nil && *b }
	out.AllowVXLAN, out.AllowIPIP = is(c.Spec.AllowVXLANPacketsFromWorkloads), is(c.Spec.AllowIPIPPacketsFromWorkloads)
	return out
}

// configOf is the configuration of a node's felix.
func (s *Server) configOf(scope views.Scope) *api.FelixConfiguration {
	r, _ := item[view.Resource](nodeView{s.cfg.Views, scope}, view.KindResource, "FelixConfiguration//"+scope.Node)
	if c, ok := r.Object.(*api.FelixConfiguration); ok {
		return c
	}
	return &api.FelixConfiguration{Spec: *api.EffectiveFelix()}
}

// hostEndpoints are those of a node by name.
func (s *Server) hostEndpoints(scope views.Scope) (out []view.HostEndpoint) {
	for _, e := range s.cfg.Views.View(scope) {
		if h, is := e.Item().(view.HostEndpoint); is {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b view.HostEndpoint) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func failsafes(ports *[]api.ProtoPort) (out []verdict.Failsafe) {
	if ports == nil {
		return nil
	}
	for _, p := range *ports {
		protocol := api.Protocol(p.Protocol)
		if protocol == "" {
			protocol = api.ProtocolTCP
		}
		number, ok := protocol.Number()
		f := verdict.Failsafe{Protocol: view.Protocol(number), Port: p.Port}
		if p.Net != "" {
			f.Peers = prefixOf(p.Net)
			ok = ok && f.Peers.IsValid()
		}
		if ok {
			out = append(out, f)
		}
	}
	return out
}

// prefixOf reads a network or an address; it is not valid if that is neither.
func prefixOf(text string) netip.Prefix {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	p, _ := netip.ParsePrefix(text)
	return p
}

// addressesOf are the addresses of a node's interface, as the node told; those of all where none is named.
func (s *Server) addressesOf(node, iface string) (out []netip.Addr) {
	n := s.cfg.Cache.Snapshot().Node(node)
	if n == nil {
		return nil
	}
	add := func(text string) {
		if p := prefixOf(text); p.IsValid() && !slices.Contains(out, p.Addr()) {
			out = append(out, p.Addr())
		}
	}
	if b := n.Spec.BGP; b != nil && (iface == "" || iface == uplink(n, netip.Addr{})) { // first, since others know the node by them
		add(b.IPv4Address)
		add(b.IPv6Address)
	}
	for _, i := range n.Spec.Interfaces {
		for _, a := range i.Addresses {
			if iface == "" || iface == i.Name {
				add(a)
			}
		}
	}
	return out
}

// uplink is the interface of a node that bears an address, or else that by which other nodes know it; "" if the node has not
// told.
func uplink(n *api.Node, own netip.Addr) string {
	if n == nil {
		return ""
	}
	bears := func(a netip.Addr) string {
		for _, i := range n.Spec.Interfaces {
			if slices.ContainsFunc(i.Addresses, func(text string) bool { return prefixOf(text).Addr() == a }) {
				return i.Name
			}
		}
		return ""
	}
	if own.IsValid() {
		if name := bears(own); name != "" {
			return name
		}
	}
	if n.Spec.BGP == nil {
		return ""
	}
	for _, text := range []string{n.Spec.BGP.IPv4Address, n.Spec.BGP.IPv6Address} {
		if p := prefixOf(text); p.IsValid() {
			if name := bears(p.Addr()); name != "" {
				return name
			}
		}
	}
	return ""
}

// tunnel is the device by which packets reach a workload on another node; "" if they are not encapsulated.
func (s *Server) tunnel(now *cache.Snapshot, from, to end, dst netip.Addr) string {
	if from.scope.Node == "" || to.endpoint == nil {
		return ""
	}
	var route view.Route
	for _, e := range s.cfg.Views.View(from.scope) {
		if r, is := e.Item().(view.Route); is && r.Node == to.scope.Node && r.Dst.Contains(dst) && (!route.Dst.IsValid() || r.Dst.Bits() > route.Dst.Bits()) {
			route = r
		}
	}
	a, b := now.Node(from.scope.Node), now.Node(to.scope.Node)
	if route.CrossSubnet && a != nil && b != nil && a.Spec.BGP != nil && b.Spec.BGP != nil {
		mine, theirs := prefixOf(a.Spec.BGP.IPv4Address), prefixOf(b.Spec.BGP.IPv4Address)
		if dst.Is6() {
			mine, theirs = prefixOf(a.Spec.BGP.IPv6Address), prefixOf(b.Spec.BGP.IPv6Address)
		}
		if mine.IsValid() && theirs.IsValid() && mine.Contains(theirs.Addr()) {
			return ""
		}
	}
	switch {
	case route.Send == view.TunnelIPIP:
		return "tunl0"
	case route.Send == view.TunnelVXLAN && dst.Is6():
		return "vxlan-v6.calico"
	case route.Send == view.TunnelVXLAN:
		return "vxlan.calico"
	}
	return ""
}
