package server

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/verdict"
	"github.com/muslin-net/muslin/typha/views"
)

// end is one end of a packet: a workload endpoint, a node itself, or an address outside of all.
type end struct {
	scope    views.Scope            // of the node; of none for an address outside
	endpoint *view.WorkloadEndpoint // nil if it is none
	host     bool                   // it is the node itself
	named    *view.HostEndpoint     // that was asked about; nil: none in particular
	addrs    []netip.Addr
}

// ExplainPolicy says what policy does to a packet, and what decides, in the order in which the packet meets those who do; each
// is asked whatever the others say.
func (s queryService) ExplainPolicy(ctx context.Context, m *typhav1.ExplainPolicyRequest) (*typhav1.ExplainPolicyResponse, error) {
	if err := mustBeOperator(ctx); err != nil {
		return nil, err
	}
	if m.GetProtocol() > 255 || m.GetPort() > 65535 {
		return nil, status.Errorf(codes.InvalidArgument, "protocol %d, port %d: a protocol is 0 to 255, a port 0 to 65535", m.GetProtocol(), m.GetPort())
	}
	if m.GetIcmpType() > 255 || m.GetIcmpCode() > 255 {
		return nil, status.Errorf(codes.InvalidArgument, "ICMP type %d, code %d: both are 0 to 255", m.GetIcmpType(), m.GetIcmpCode())
	}
	from, err := s.end(m.GetFrom())
	if err != nil {
		return nil, err
	}
	to, err := s.end(m.GetTo())
	if err != nil {
		return nil, err
	}
	// Source ports are never known, nor is what was not asked for: a rule that wants to see it does not match, and is named.
	p := packet.Packet{Protocol: view.Protocol(m.GetProtocol()), DestinationPort: uint16(m.GetPort())}
	if m.IcmpType != nil {
		p.ICMP = &view.ICMP{Type: uint8(m.GetIcmpType())}
		if m.IcmpCode != nil {
			p.ICMP.Code = new(uint8(m.GetIcmpCode()))
		}
	}
	if p.Source, p.Destination = sameFamily(from.addrs, to.addrs); !p.Source.IsValid() {
		return nil, status.Errorf(codes.FailedPrecondition, "%s (%v) and %s (%v) have no addresses of one family", m.GetFrom(), from.addrs, m.GetTo(), to.addrs)
	}
	beyond := p
	as := s.translated(s.cfg.Cache.Snapshot(), from, to, p.Source, p.Destination)
	if as.IsValid() {
		beyond.Source = as
	}
	answer := &typhav1.ExplainPolicyResponse{Allowed: true, Notes: s.notes(from, to, as, p.Destination)}
	for _, at := range s.passages(from, to, p.Source, p.Destination) {
		seen := p
		if at.scope != from.scope {
			seen = beyond
		}
		for _, d := range verdict.Cross(nodeView{s.cfg.Views, at.scope}, at.node, at.way, seen) {
			answer.Decisions = append(answer.Decisions, &typhav1.Decision{
				Endpoint: d.Endpoint, Egress: d.Egress, Pass: string(d.Pass), Allowed: d.Allowed, By: d.By, Rule: int32(d.Rule),
			})
			answer.Allowed = answer.GetAllowed() && d.Allowed
			for _, open := range d.Open {
				answer.Notes = append(answer.Notes, noteOf(d, open))
			}
		}
	}
	return answer, nil
}

// noteOf says that a rule asks for what is not known.
func noteOf(at verdict.Step, open verdict.Open) string {
	direction := "ingress"
	if at.Egress {
		direction = "egress"
	}
	return fmt.Sprintf("Rule %d of %s (%s of %s) asks for the %s, which was not given, and may decide otherwise.", open.Rule, open.Policy, direction, at.Endpoint, open.Asks)
}

// end finds what an operator named.
func (s *Server) end(text string) (end, error) {
	now := s.cfg.Cache.Snapshot()
	if a, err := netip.ParseAddr(text); err == nil {
		return s.endWith(now, a.Unmap()), nil
	}
	name, isHost := strings.CutPrefix(text, verdict.HostPrefix)
	if !strings.Contains(name, "/") {
		if e, found := s.hostNamed(now, name); found {
			return e, nil
		}
	}
	if n := strings.Count(text, "/"); isHost {
		return end{}, status.Errorf(codes.NotFound, "there is no host endpoint and no node %q", name)
	} else if n != 3 && n != 1 {
		return end{}, status.Errorf(codes.InvalidArgument, "%q is neither an address nor an endpoint nor a node: write namespace/pod, orchestrator/namespace/workload/interface, or the name of a host endpoint or node", text)
	}
	for n := range now.Nodes() {
		scope := views.Scope{Node: n.Name, View: views.NodeView}
		if e := s.endpointNamed(scope, text); e != nil {
			return end{scope: scope, endpoint: e, addrs: e.Addresses}, nil
		}
	}
	return end{}, status.Errorf(codes.NotFound, "there is no endpoint %q on any node", text)
}

// endWith finds who has an address.
func (s *Server) endWith(now *cache.Snapshot, a netip.Addr) end {
	single := netip.PrefixFrom(a, a.BitLen())
	for o := range cache.All[*cache.Endpoint](now, "WorkloadEndpoint") {
		if slices.Contains(o.Nets, single) {
			scope := views.Scope{Node: o.Node, View: views.NodeView}
			if e := s.endpointWith(scope, a); e != nil {
				return end{scope: scope, endpoint: e, addrs: []netip.Addr{a}}
			}
		}
	}
	for n := range now.Nodes() {
		if slices.Contains(s.addressesOf(n.Name, ""), a) {
			return end{scope: views.Scope{Node: n.Name, View: views.NodeView}, host: true, addrs: []netip.Addr{a}}
		}
	}
	for n := range now.Nodes() {
		scope := views.Scope{Node: n.Name, View: views.NodeView}
		for _, h := range s.hostEndpoints(scope) {
			if slices.Contains(h.ExpectedIPs, a) {
				return end{scope: scope, host: true, named: &h, addrs: []netip.Addr{a}}
			}
		}
	}
	return end{addrs: []netip.Addr{a}}
}

// hostNamed finds a node by the name of a host endpoint of it, or by its own.
func (s *Server) hostNamed(now *cache.Snapshot, name string) (end, bool) {
	for n := range now.Nodes() {
		scope := views.Scope{Node: n.Name, View: views.NodeView}
		if e := s.cfg.Views.Get(scope, view.Key{Kind: view.KindHostEndpoint, ID: name}); e != nil {
			h := e.Item().(view.HostEndpoint)
			addrs := h.ExpectedIPs
			if len(addrs) == 0 && h.Interface != "*" {
				addrs = s.addressesOf(n.Name, h.Interface)
			}
			if len(addrs) == 0 {
				addrs = s.addressesOf(n.Name, "")
			}
			return end{scope: scope, host: true, named: &h, addrs: addrs}, true
		}
	}
	if now.Node(name) != nil {
		return end{scope: views.Scope{Node: name, View: views.NodeView}, host: true, addrs: s.addressesOf(name, "")}, true
	}
	return end{}, false
}

// endpointNamed finds an endpoint of a node by its id, or by its workload (the first by id, if that has several).
func (s *Server) endpointNamed(scope views.Scope, name string) (found *view.WorkloadEndpoint) {
	if e := s.cfg.Views.Get(scope, view.Key{Kind: view.KindWorkloadEndpoint, ID: name}); e != nil {
		w := e.Item().(view.WorkloadEndpoint)
		return &w
	}
	for _, e := range s.cfg.Views.View(scope) {
		if w, ok := e.Item().(view.WorkloadEndpoint); ok && w.ID.Workload == name && (found == nil || w.ID.String() < found.ID.String()) {
			found = &w
		}
	}
	return found
}

// endpointWith finds the endpoint of a node that has an address.
func (s *Server) endpointWith(scope views.Scope, a netip.Addr) *view.WorkloadEndpoint {
	for _, e := range s.cfg.Views.View(scope) {
		if w, ok := e.Item().(view.WorkloadEndpoint); ok && slices.Contains(w.Addresses, a) {
			return &w
		}
	}
	return nil
}

// sameFamily picks an address of each end, of one family; IPv4 where both have it.
func sameFamily(from, to []netip.Addr) (src, dst netip.Addr) {
	for _, is4 := range []bool{true, false} {
		family := func(a netip.Addr) bool { return a.Is4() == is4 }
		if i, j := slices.IndexFunc(from, family), slices.IndexFunc(to, family); i >= 0 && j >= 0 {
			return from[i], to[j]
		}
	}
	return netip.Addr{}, netip.Addr{}
}
