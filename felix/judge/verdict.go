package judge

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/felix/desired"
)

// Outcome is what the rules do to a packet.
type Outcome uint8

// The outcomes.
const (
	// Unjudged packets are not policy's business, or an endpoint is closed because its policy is not known: the rules drop
	// all of its packets as long as that lasts.
	Unjudged Outcome = iota
	Allowed
	Forbidden
)

// Verdict is the outcome, and what decided.
type Verdict struct {
	Outcome   Outcome
	Endpoint  string // id of the endpoint whose policy decided last
	Direction desired.Direction
	By        string // comment of the rule: "np/shop/web ingress 3", "end of tier default"
}

const protocolTCP view.Protocol = 6

// toHost is what decides on packets that policy lets through to the node.
const toHost = "DefaultEndpointToHostAction Drop"

// Judge says what the rules do to a packet: the egress policy of the workload that it comes from, then the ingress policy
// of the one that it goes to.
//
// What the node itself sends or gets is judged by its host endpoints; translated tells that the packet was sent to another
// destination than p has.
func (m *Model) Judge(p packet.Packet, translated bool) Verdict {
	last := Verdict{}
	closed := false
	from, known := m.sender(p.Source)
	if known {
		v := m.side(from, desired.Egress, p)
		if v.Outcome == Forbidden {
			return v
		}
		closed = closed || v.Outcome == Unjudged
		last = v
	}
	to, toWorkload := m.owners[p.Destination]
	switch {
	case known || m.own(p.Source) && m.own(p.Destination): // loopback's are nobody's to cut
	case m.own(p.Destination):
		return m.host(desired.Ingress, p, translated)
	case m.own(p.Source) && !toWorkload:
		return m.host(desired.Egress, p, translated)
	}
	if m.own(p.Destination) {
		speaks := p.Protocol == protocolTCP && p.DestinationPort != 0 && p.DestinationPort == m.workloads[from].SpeakerPort
		if known && !closed && !speaks && m.settings != nil && m.settings.EndpointToHost == desired.HostDrop {
			return Verdict{Outcome: Forbidden, Endpoint: m.workloads[from].Endpoint, Direction: desired.Egress, By: toHost}
		}
		return last
	}
	if toWorkload && !m.own(p.Source) {
		v := m.side(to, desired.Ingress, p)
		if v.Outcome == Forbidden {
			return v
		}
		closed = closed || v.Outcome == Unjudged
		last = v
	}
	if closed {
		last.Outcome = Unjudged
	}
	return last
}

func (m *Model) own(a netip.Addr) bool {
	_, own := m.Host[a]
	return own
}

// sender is the workload that uses a source. Where several may use it, which of them did is not known.
func (m *Model) sender(a netip.Addr) (string, bool) {
	if name, ok := m.owners[a]; ok {
		return name, true
	}
	found := ""
	for _, name := range m.spoofers {
		if slices.ContainsFunc(m.workloads[name].AllowedSources, func(p netip.Prefix) bool { return p.Contains(a) }) {
			if found != "" {
				return "", false
			}
			found = name
		}
	}
	return found, found != ""
}

// side is the verdict of one workload.
func (m *Model) side(name string, d desired.Direction, p packet.Packet) Verdict {
	w := m.workloads[name]
	chain := w.Ingress
	if d == desired.Egress {
		chain = w.Egress
		if by := m.tunnel(p); by != "" {
			return Verdict{Outcome: Forbidden, Endpoint: w.Endpoint, Direction: d, By: by}
		}
	}
	e := evaluation{Model: m, packet: p}
	e.run(chain)
	return Verdict{Outcome: e.outcome(), Endpoint: w.Endpoint, Direction: d, By: e.by}
}

// tunnel tells whether a workload makes tunnel packets of its own that it must not make.
func (m *Model) tunnel(p packet.Packet) string {
	const ipip, udp = 4, 17
	if m.settings == nil {
		return ""
	}
	port := cmp.Or(m.settings.VXLANPort, desired.DefaultVXLANPort)
	if v := m.settings.VXLAN4; v != nil && p.Destination.Is4() {
		port = v.Port
	} else if v := m.settings.VXLAN6; v != nil && p.Destination.Is6() {
		port = v.Port
	}
	switch {
	case !m.settings.AllowVXLANFromWorkloads && p.Protocol == udp && p.DestinationPort == port:
		return "VXLAN made by a workload"
	case !m.settings.AllowIPIPFromWorkloads && p.Protocol == ipip:
		return "IP-in-IP made by a workload"
	}
	return ""
}

// evaluation runs chains as the kernel does.
type evaluation struct {
	*Model
	packet                          packet.Packet
	allowed, passed, denied, broken bool
	by                              string // the last rule that decided something
}

func (e *evaluation) outcome() Outcome {
	switch {
	case e.broken:
		return Unjudged
	case e.denied:
		return Forbidden
	case e.allowed:
		return Allowed
	}
	// A list ends with a drop, so nothing falls through one that is known.
	return Unjudged
}

func (e *evaluation) ended() bool { return e.denied || e.broken }

func (e *evaluation) run(name string) {
	c, known := e.chains[name]
	if !known {
		e.broken = !desired.OfStaged(name)
		return
	}
	for i := range c.Rules {
		r := &c.Rules[i]
		switch r.If {
		case desired.IfUndecided:
			if e.allowed || e.passed {
				continue
			}
		case desired.IfAllowed:
			if !e.allowed {
				continue
			}
		}
		if r.Do == desired.Count {
			return // the rest of its chain decides nothing, either
		}
		if r.Match != nil && !e.known(r.Match) {
			e.broken = true // the kernel has a drop here until the set is known
			return
		}
		if r.Match != nil && !e.packet.Matches(criteria(r.Match), e.Model) {
			continue
		}
		switch r.Do {
		case desired.Allow:
			e.allowed, e.by = true, r.Comment
			return
		case desired.Pass:
			e.passed, e.by = true, r.Comment
			return
		case desired.Return:
			return
		case desired.Deny:
			e.denied, e.by = true, r.Comment
			return
		case desired.Reset:
			e.allowed, e.passed = false, false
		case desired.Jump:
			if e.run(r.Target); e.ended() {
				return
			}
		}
	}
}

func criteria(m *desired.Match) packet.Criteria {
	return packet.Criteria{
		IPVersion: m.IPVersion, Protocol: m.Protocol, NotProtocol: m.NotProtocol, ICMP: m.ICMP, NotICMP: m.NotICMP,
		Source: &m.Source, Destination: &m.Destination,
	}
}

// known tells whether all sets are known that a match names.
func (m *Model) known(match *desired.Match) bool {
	for _, side := range [2]*view.Match{&match.Source, &match.Destination} {
		for _, ids := range [5][]string{side.Sets, side.NotSets, side.IPPortSets, side.NamedPorts, side.NotNamedPorts} {
			for _, id := range ids {
				if m.sets[id] == nil {
					return false
				}
			}
		}
	}
	return true
}
