package judge

import (
	"cmp"

	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/felix/desired"
)

// host says what host endpoints do to a packet between the node itself and one who is neither the node nor a workload of it. By
// which interface it goes is not known: a packet is forbidden if it is whichever that is, so that none is cut by mistake. An
// interface without an endpoint forbids nothing; that there is none is certain where there is an endpoint of all interfaces.
func (m *Model) host(d desired.Direction, p packet.Packet, translated bool) Verdict {
	if _, all := m.hosts[desired.AnyInterface]; !all || m.betweenNodes(p) {
		return Verdict{Outcome: Allowed}
	}
	forbidden, closed := Verdict{}, false
	for _, h := range m.hosts {
		switch v := m.hostEndpoint(h, d, p, translated); {
		case v.Outcome == Allowed:
			return v
		case v.Outcome == Unjudged:
			closed = true // which lets established connections pass
		case forbidden.Endpoint == "" || v.Endpoint < forbidden.Endpoint: // not as the map's order has it
			forbidden = v
		}
	}
	if closed {
		return Verdict{}
	}
	return forbidden
}

// hostEndpoint is the verdict of one host endpoint: its failsafe ports, then its passes. The pass before translation judges
// another destination than p has, if that was translated, which is no matter of the connection any more.
func (m *Model) hostEndpoint(h desired.Host, d desired.Direction, p packet.Packet, translated bool) Verdict {
	failsafe, before := desired.FailsafeOut, ""
	if d == desired.Ingress {
		failsafe, before = desired.FailsafeIn, h.PreDNAT.Ingress
	}
	v := Verdict{Endpoint: "host/" + h.Endpoint, Direction: d}
	for _, chain := range []string{failsafe, before, h.Normal.Of(d)} {
		e := evaluation{Model: m, packet: p}
		if _, there := m.chains[chain]; !there || chain == before && translated {
			continue
		}
		e.run(chain)
		v.By, v.Outcome = e.by, e.outcome()
		if v.Outcome == Allowed || v.Outcome == Forbidden {
			return v
		}
	}
	v.Outcome = Unjudged
	return v
}

// betweenNodes tells whether a packet may be a tunnel's, which no policy of hosts is about.
func (m *Model) betweenNodes(p packet.Packet) bool {
	const ipip, udp = 4, 17
	if m.settings == nil || p.Protocol == ipip {
		return true
	}
	return p.Protocol == udp && p.DestinationPort == cmp.Or(m.settings.VXLANPort, desired.DefaultVXLANPort)
}
