package generate

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/oracle"
)

// Outside are addresses of the world that nothing of ours has, by family.
var outside = [2][]netip.Addr{
	{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("198.51.100.9")},
	{netip.MustParseAddr("2001:db8:1::5"), netip.MustParseAddr("2001:db8:9::9")},
}

// Packet makes up a packet and its way through the node. A packet comes from a workload under one of its own addresses only,
// and goes to one at its own.
func (g *Generator) Packet() (oracle.Way, oracle.Packet) {
	var w oracle.Way
	family := g.r.IntN(2)
	p := oracle.Packet{Source: g.stranger(family), Destination: g.stranger(family)}
	from, to := pick(g, g.local...), pick(g, g.local...)
	kind := g.r.IntN(10)
	if kind < 7 || from == to {
		w.From = api.KeyOf(from)
		p.Source = g.wires[w.From][family]
	}
	if kind > 3 && kind != 9 && from != to {
		w.To = api.KeyOf(to)
		p.Destination = g.wires[w.To][family]
	}
	host := [2]netip.Addr{netip.MustParseAddr("192.168.9.1"), netip.MustParseAddr("fd00:9::1")}[family]
	switch {
	case kind == 0 || w == (oracle.Way{}) && g.chance(50):
		w.ToHost, p.Destination = true, host
	case w.From == (api.Key{}) && g.chance(40):
		w.FromHost, p.Source = true, host
	}
	g.transport(&p)
	if !w.ToHost && p.Protocol == oracle.ICMPv6 && p.Type >= 130 && p.Type <= 137 {
		p.Type = 128 // neighbour discovery does not go from one network to another
	}
	return w, p
}

func address(e *api.WorkloadEndpoint, family int) netip.Addr {
	return netip.MustParsePrefix(e.Spec.IPNetworks[family]).Addr()
}

// stranger is an address that is no local workload's.
func (g *Generator) stranger(family int) netip.Addr {
	for range 20 {
		a := pick(g, append(g.interesting[family], outside[family]...)...)
		if !g.isLocal(a) {
			return a
		}
	}
	return outside[family][0]
}

func (g *Generator) isLocal(a netip.Addr) bool {
	for _, addrs := range g.wires {
		if slices.Contains(addrs[:], a) {
			return true
		}
	}
	return false
}

func (g *Generator) transport(p *oracle.Packet) {
	icmp := uint8(oracle.ICMP)
	if p.V6() {
		icmp = oracle.ICMPv6
	}
	p.Protocol = pick[uint8](g, oracle.TCP, oracle.TCP, oracle.TCP, oracle.UDP, oracle.UDP, oracle.SCTP, icmp, icmp, oracle.UDPLite, 47, oracle.IPIP)
	switch p.Protocol {
	case icmp:
		p.Type, p.Code = pick[uint8](g, 8, 0, 128, 135, 3, 133), pick[uint8](g, 0, 0, 1, 7)
	case oracle.TCP, oracle.UDP, oracle.SCTP, oracle.UDPLite:
		p.SourcePort, p.DestinationPort = g.port(), g.port()
		if g.chance(8) { // failsafe ports
			p.DestinationPort = pick[uint16](g, 22, 53, 67, 68, 179, 6443, 2378)
		}
	}
}

func (g *Generator) port() uint16 {
	if g.chance(10) {
		return uint16(1 + g.r.IntN(65535))
	}
	return pick[uint16](g, 53, 80, 81, 82, 90, 443, 444, 4789, 8000, 8080, 8081, 9000, 65535, 1)
}
