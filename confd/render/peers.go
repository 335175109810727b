package render

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
)

// sessions finds the node's sessions: the mesh, and those that BGPPeers ask for. Of two BGPPeers that ask for the same one
// the first by scope (global, node, the way back of another node's) and name has it.
func (r *renderer) sessions() {
	r.mesh()
	taken := map[netip.AddrPort]string{}
	for _, p := range r.peers {
		if isGlobal(p) {
			r.expand(p, Global, taken)
		}
	}
	for _, p := range r.peers {
		if !isGlobal(p) && r.onNode(p, r.own) {
			r.expand(p, NodeSpecific, taken)
		}
	}
	for _, p := range r.peers {
		if p.Spec.ReversePeering == nil || *p.Spec.ReversePeering != api.ReverseManual {
			r.reverse(p, taken)
		}
	}
}

func isGlobal(p *api.BGPPeer) bool { return p.Spec.Node == "" && p.Spec.NodeSelector == "" }

// onNode tells whether the peering is the node's: whether the node is on its local side.
func (r *renderer) onNode(p *api.BGPPeer, n *node) bool {
	switch {
	case isGlobal(p):
		return true
	case p.Spec.Node != "":
		return p.Spec.Node == n.name
	default:
		return r.selects(p, "nodeSelector", p.Spec.NodeSelector, n)
	}
}

func (r *renderer) selects(p *api.BGPPeer, field, text string, n *node) bool {
	s, err := selector.Parse(text)
	if err != nil {
		r.warn("BGPPeer(%s).spec.%s: %v; it selects nothing", p.Name, field, err)
		return false
	}
	return s.Matches(n.labels)
}

// mesh peers with every other node that is no reflector by hand, or with the reflectors that stand in for the mesh.
func (r *renderer) mesh() {
	const where = "BGPConfiguration(default).spec."
	far, seen := 0, map[netip.Addr]string{}
	for _, n := range r.nodes {
		if !r.meets(n) {
			continue
		}
		for _, v6 := range []bool{false, true} {
			own, other := r.own.address(v6), n.address(v6)
			if !own.IsValid() || !other.IsValid() {
				continue
			}
			if own == other {
				r.warn("Node(%s): has the address %s of this node; give each node its own", n.name, other)
				continue
			}
			if first, twice := seen[other]; twice {
				r.warn("Node(%s): has the address %s of Node(%s); give each node its own", n.name, other, first)
				continue
			}
			seen[other] = n.name
			p := Peer{
				Name: sessionName(Mesh, other, 0), Type: Mesh, Source: "Node(" + n.name + ")",
				Address: other, Port: n.port, ASNumber: n.as, SourceAddress: own, Passive: passive(own, other), ReflectorClient: r.serves(n),
				RestartTime: r.restartTime(where+"nodeMeshMaxRestartTime", r.config.NodeMeshMaxRestartTime),
				HoldTime:    r.holdTime(where+"nodeMeshHoldTime", r.config.NodeMeshHoldTime),
			}
			p.Password, p.WaitingFor = r.password(where+"nodeMeshPassword", r.config.NodeMeshPassword)
			var wanted bool
			if p.BFD, wanted = r.bfd(where, r.config.NodeMeshFailureDetectionMode, nil, other); wanted && p.BFD == nil {
				far++
			}
			r.out.Peers = append(r.out.Peers, p)
		}
	}
	if far > 0 {
		r.warn("%snodeMeshFailureDetectionMode: %d addresses of nodes are in no subnet of this node, and BFD does not watch them; write BFD to watch over several hops", where, far)
	}
}

// passive keeps both ends from dialling at once. The comparison is of strings, "10.0.0.9" > "10.0.0.10", as every node of a
// mixed cluster does it.
func passive(own, other netip.Addr) bool { return other.String() > own.String() }

// remote is the other end of a session.
type remote struct {
	address netip.Addr
	port    uint16
	named   bool // the port is part of the session's name
	as      uint32
	node    *node      // if it is known to be one of the cluster
	cluster netip.Addr // of a reflector, if known
	passive bool
}

// expand adds the sessions of a peering on whose local side the own node is.
func (r *renderer) expand(p *api.BGPPeer, t PeerType, taken map[netip.AddrPort]string) {
	where := "BGPPeer(" + p.Name + ")"
	switch {
	case p.Spec.LocalWorkloadSelector != "":
		r.workloads(p, taken)
	case p.Spec.PeerSelector != "":
		for _, n := range r.nodes {
			if n != r.own && r.selects(p, "peerSelector", p.Spec.PeerSelector, n) {
				r.toNode(p, t, n, taken, false, true)
			}
		}
	case p.Spec.PeerIP != "":
		address, port, ok := parsePeerIP(p.Spec.PeerIP)
		if !ok {
			r.warn("%s.spec.peerIP: %q is not an address with an optional port; there is no session", where, p.Spec.PeerIP)
			return
		}
		to := remote{address: address, port: cmp.Or(port, api.DefaultBGPPort), named: port != 0, as: uint32(p.Spec.ASNumber)}
		if to.as == 0 {
			to.as = r.globalAS()
			r.warn("%s.spec.asNumber: is missing, or 0; it is taken as the cluster's, %d", where, to.as)
		}
		if p.Spec.Node == r.own.name && r.own.address(address.Is6()) == address {
			r.warn("%s.spec.peerIP: %s is the node's own address; there is no session", where, address)
			return
		}
		for _, n := range r.nodes {
			if n.address(address.Is6()) != address {
				continue
			}
			if t == Global && n != r.own {
				to.passive = passive(r.own.address(address.Is6()), address)
			}
			if n.as == to.as && port == 0 {
				to.port = n.port
			}
		}
		r.add(p, t, to, taken)
	}
}

// toNode adds sessions to a node of the cluster: in one family, or in both.
func (r *renderer) toNode(p *api.BGPPeer, t PeerType, n *node, taken map[netip.AddrPort]string, v6, both bool) {
	for _, family := range []bool{false, true} {
		a := n.address(family)
		if (both || family == v6) && a.IsValid() {
			r.add(p, t, remote{address: a, port: n.port, named: n.port != api.DefaultBGPPort, as: n.as, node: n, cluster: n.cluster}, taken)
		}
	}
}

// reverse adds the way back of a peering on whose far side the own node is.
func (r *renderer) reverse(p *api.BGPPeer, taken map[netip.AddrPort]string) {
	both, v6 := true, false
	switch {
	case p.Spec.LocalWorkloadSelector != "":
		return
	case p.Spec.PeerSelector != "":
		if !r.selects(p, "peerSelector", p.Spec.PeerSelector, r.own) {
			return
		}
	default:
		address, port, ok := parsePeerIP(p.Spec.PeerIP)
		as := cmp.Or(uint32(p.Spec.ASNumber), r.globalAS())
		if !ok || r.own.address(address.Is6()) != address || r.own.as != as || port != 0 && port != r.own.port {
			return
		}
		both, v6 = false, address.Is6()
	}
	for _, n := range r.nodes {
		if n != r.own && r.onNode(p, n) {
			r.toNode(p, NodeSpecific, n, taken, v6, both)
		}
	}
}

// add makes a session of a peering, unless its address and port are taken.
func (r *renderer) add(p *api.BGPPeer, t PeerType, to remote, taken map[netip.AddrPort]string) {
	where := "BGPPeer(" + p.Name + ")"
	own := r.own.address(to.address.Is6())
	if to.address == r.own.v4 || to.address == r.own.v6 {
		return
	}
	if !own.IsValid() {
		r.warn("%s: this node has no address of the family of %s; there is no session", where, to.address)
		return
	}
	key := netip.AddrPortFrom(to.address, to.port)
	if by, ok := taken[key]; ok {
		if by != where {
			r.warn("%s: %s has the session with %s already", where, by, key)
		}
		return
	}
	taken[key] = where
	out := Peer{Type: t, Source: where, Address: to.address, Port: to.port, ASNumber: to.as, Passive: to.passive}
	named := uint16(0)
	if to.named {
		named = to.port
	}
	out.Name = sessionName(t, to.address, named)
	if slices.ContainsFunc(r.out.Peers, func(o Peer) bool { return o.Name == out.Name }) {
		out.Name = sessionName(t, to.address, to.port)
	}
	if p.Spec.SourceAddress != api.SourceNone {
		out.SourceAddress = own
	}
	r.numbers(p, to, &out)
	r.timers(p, &out)
	r.gateway(p, to.address)
	out.Password, out.WaitingFor = r.password(where+".spec.password", p.Spec.Password)
	internal := out.ASNumber == cmp.Or(out.LocalASNumber, r.own.as)
	out.NextHop = nextHop(&p.Spec, internal)
	// A reflector's peers inside the AS are its clients, but for reflectors that are known to share its cluster.
	out.ReflectorClient = internal && r.own.cluster.IsValid() && to.cluster != r.own.cluster
	out.Filters = r.filtersOf(p)
	r.out.Peers = append(r.out.Peers, out)
}

// filtersOf names the filters of a peering that there are.
func (r *renderer) filtersOf(p *api.BGPPeer) (names []string) {
	for _, name := range p.Spec.Filters {
		if r.filters[name] == nil {
			r.warn("BGPPeer(%s).spec.filters: there is no BGPFilter %q; it filters nothing", p.Name, name)
			continue
		}
		names = append(names, name)
	}
	return names
}

func nextHop(spec *api.BGPPeerSpec, internal bool) NextHopMode {
	switch {
	case spec.NextHopMode != nil && *spec.NextHopMode == api.NextHopSelf:
		return NextHopSelf
	case spec.NextHopMode != nil && *spec.NextHopMode == api.NextHopKeep,
		spec.KeepOriginalNextHop && !internal:
		return NextHopKeep
	default:
		return NextHopAuto
	}
}

// sessionName is a name that operators and tools know: "Global_10_0_0_1_port_1179".
func sessionName(t PeerType, a netip.Addr, port uint16) string {
	name := t.String() + "_" + strings.NewReplacer(".", "_", ":", "_").Replace(a.String())
	if port != 0 {
		name += fmt.Sprintf("_port_%d", port)
	}
	return name
}

// parsePeerIP reads "10.0.0.1", "10.0.0.1:1179", "fd00::1" or "[fd00::1]:1179"; port 0 means that none was given. Link-local
// addresses and zones are refused.
func parsePeerIP(s string) (a netip.Addr, port uint16, ok bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			host, bracketed := strings.CutPrefix(s, "[")
			host, closed := strings.CutSuffix(host, "]")
			if a, err = netip.ParseAddr(host); err != nil || !bracketed || !closed {
				return netip.Addr{}, 0, false
			}
		} else {
			a, port = ap.Addr(), ap.Port()
			if port == 0 {
				return netip.Addr{}, 0, false
			}
		}
	}
	a = a.Unmap()
	return a, port, a.Zone() == "" && !a.IsLinkLocalUnicast() && !a.IsUnspecified() && !a.IsMulticast()
}
