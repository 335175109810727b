// Package packet says what the criteria of a rule mean (spec §1.6, §3.1): whether a packet matches them. It is pure, and
// used where packets are judged without a kernel: felix judges the flows of a node when policy changes, typha answers what
// policy would do.
package packet

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/view"
)

// Numbers of the two protocols whose criteria are types instead of ports.
const (
	ICMP   view.Protocol = 1
	ICMPv6 view.Protocol = 58
)

// withPorts are the protocols that have ports: TCP, UDP, SCTP and UDPLite.
var withPorts = []view.Protocol{6, 17, 132, 136}

// Packet is what rules can ask about the first packet of a connection, as policy sees it: after the destination was
// translated, before the source is. Both addresses are of one family, IPv4 ones not mapped into IPv6.
type Packet struct {
	Source, Destination netip.Addr
	Protocol            view.Protocol
	// Ports are those of protocols that have them; 0 is not known, and in no list of ports.
	SourcePort, DestinationPort uint16
	// ICMP is the type, with the code; nil is not known, and equal to none.
	ICMP *view.ICMP
}

// Criteria are those of one rule, all of which must hold. Source and Destination are never nil.
type Criteria struct {
	IPVersion             uint8 // 4, 6, or 0 for both
	Protocol, NotProtocol view.Protocol
	ICMP, NotICMP         *view.ICMP
	Source, Destination   *view.Match
}

// Of are the criteria of a rule.
func Of(r *view.Rule) Criteria {
	return Criteria{
		IPVersion: r.IPVersion, Protocol: r.Protocol, NotProtocol: r.NotProtocol, ICMP: r.ICMP, NotICMP: r.NotICMP,
		Source: &r.Source, Destination: &r.Destination,
	}
}

// Sets are the members of the sets that criteria name. A set that is not known has none.
type Sets interface {
	// Contains tells whether an address is in a set of prefixes.
	Contains(id string, a netip.Addr) bool
	// ContainsPort tells whether an address with protocol and port is in a set of such.
	ContainsPort(id string, a netip.Addr, protocol view.Protocol, port uint16) bool
}

// Matches tells whether a packet meets all criteria.
func (p Packet) Matches(c Criteria, sets Sets) bool {
	return p.family(c.IPVersion) && p.protocol(c) &&
		p.side(c.Source, p.Source, p.SourcePort, sets) && p.side(c.Destination, p.Destination, p.DestinationPort, sets)
}

// Unknown names what is not known of a packet and alone keeps open whether it meets the criteria; "" if nothing does.
func (p Packet) Unknown(c Criteria, sets Sets) string {
	var unknown []string
	for _, asked := range []*view.ICMP{c.ICMP, c.NotICMP} {
		switch {
		case asked == nil || p.Protocol != ICMP && p.Protocol != ICMPv6:
		case p.ICMP == nil:
			unknown = append(unknown, "type of ICMP")
		case asked.Code != nil && p.ICMP.Code == nil && asked.Type == p.ICMP.Type:
			unknown = append(unknown, "code of ICMP")
		}
	}
	open := c // for every such packet
	if len(unknown) > 0 {
		open.ICMP, open.NotICMP = nil, nil
	}
	side := func(name string, port uint16, m **view.Match) {
		if port != 0 || !slices.Contains(withPorts, p.Protocol) || len((*m).Ports)+len((*m).NotPorts)+len((*m).NamedPorts)+len((*m).NotNamedPorts)+len((*m).IPPortSets) == 0 {
			return
		}
		without := **m
		without.Ports, without.NotPorts, without.NamedPorts, without.NotNamedPorts, without.IPPortSets = nil, nil, nil, nil, nil
		*m, unknown = &without, append(unknown, name)
	}
	side("source port", p.SourcePort, &open.Source)
	side("destination port", p.DestinationPort, &open.Destination)
	if len(unknown) == 0 || !p.Matches(open, sets) {
		return ""
	}
	return strings.Join(slices.Compact(unknown), " and ")
}

func (p Packet) family(version uint8) bool {
	return version == 0 || version == 4 == p.Destination.Is4()
}

// protocol judges protocol and type. A type is one of the ICMP of the packet's family, whichever of the two the rule names.
func (p Packet) protocol(c Criteria) bool {
	icmp, foreign := ICMP, ICMPv6
	if p.Destination.Is6() {
		icmp, foreign = ICMPv6, ICMP
	}
	switch {
	case c.Protocol == foreign, c.Protocol != 0 && c.Protocol != p.Protocol, c.NotProtocol != 0 && c.NotProtocol == p.Protocol:
		return false
	case (c.ICMP != nil || c.NotICMP != nil) && p.Protocol != icmp:
		return false
	}
	return (c.ICMP == nil || p.isType(*c.ICMP)) && (c.NotICMP == nil || !p.isType(*c.NotICMP))
}

func (p Packet) isType(want view.ICMP) bool {
	if p.ICMP == nil || p.ICMP.Type != want.Type {
		return false
	}
	return want.Code == nil || p.ICMP.Code != nil && *p.ICMP.Code == *want.Code
}

func (p Packet) side(m *view.Match, a netip.Addr, port uint16, sets Sets) bool {
	if !nets(m.Nets, a, true) || !nets(m.NotNets, a, false) {
		return false
	}
	for _, id := range m.Sets {
		if !sets.Contains(id, a) {
			return false
		}
	}
	for _, id := range m.NotSets {
		if sets.Contains(id, a) {
			return false
		}
	}
	inPort := func(id string) bool { return sets.ContainsPort(id, a, p.Protocol, port) }
	inRange := func(r view.PortRange) bool { return port != 0 && r.First <= port && port <= r.Last }
	for _, id := range m.IPPortSets {
		if !inPort(id) {
			return false
		}
	}
	return (len(m.Ports)+len(m.NamedPorts) == 0 || slices.ContainsFunc(m.Ports, inRange) || slices.ContainsFunc(m.NamedPorts, inPort)) &&
		!slices.ContainsFunc(m.NotPorts, inRange) && !slices.ContainsFunc(m.NotNamedPorts, inPort)
}

// nets judges a list of prefixes; in says that the address must be in one of them, else it must be in none. As in Calico,
// a rule with a list that has no prefix of the packet's family is about the other family and does not apply.
func nets(list []netip.Prefix, a netip.Addr, in bool) bool {
	if len(list) == 0 {
		return true
	}
	family := false
	for _, n := range list {
		if n.Addr().Is4() != a.Is4() {
			continue
		}
		if n.Contains(a) {
			return in
		}
		family = true
	}
	return family && !in
}
