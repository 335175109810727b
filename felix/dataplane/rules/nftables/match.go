package nftables

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

const (
	protoICMP   = 1
	protoIPIP   = 4
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// side is where the source's or destination's fields are in a packet.
type side struct {
	addr4, addr6 uint32 // offset of the address in the network header
	port         uint32 // offset of the port in the transport header
}

var (
	source      = side{addr4: 12, addr6: 8, port: 0}
	destination = side{addr4: 16, addr6: 24, port: 2}
)

// match returns the ways in which a packet can match, each as the expressions of one rule: none if no packet of the family
// can, several where criteria are alternatives (numeric and named ports).
func (c *compiler) match(m desired.Match) []nft.Expr {
	if (m.IPVersion == 4 && c.family != nft.IP4) || (m.IPVersion == 6 && c.family != nft.IP6) {
		return nil
	}
	e, ok := c.protocol(make(nft.Expr, 0, 512), m)
	if !ok {
		return nil
	}
	ways := []nft.Expr{e}
	for _, s := range []struct {
		side
		view.Match
	}{{source, m.Source}, {destination, m.Destination}} {
		if ways = c.sideMatch(ways, s.side, s.Match); len(ways) == 0 {
			return nil
		}
	}
	return ways
}

func (c *compiler) protocol(e nft.Expr, m desired.Match) (nft.Expr, bool) {
	icmp, foreign := byte(protoICMP), view.Protocol(protoICMPv6)
	if c.family == nft.IP6 {
		icmp, foreign = protoICMPv6, protoICMP
	}
	if m.Protocol == foreign {
		return e, false
	}
	proto := byte(m.Protocol)
	if m.ICMP != nil || m.NotICMP != nil {
		if proto != 0 && proto != icmp {
			return e, false
		}
		proto = icmp // types are of that protocol only
	}
	if proto != 0 {
		e = e.Meta(unix.NFT_META_L4PROTO, nft.Reg).Equal([]byte{proto}, false)
	}
	if m.NotProtocol != 0 {
		e = e.Meta(unix.NFT_META_L4PROTO, nft.Reg).Equal([]byte{byte(m.NotProtocol)}, true)
	}
	e = icmpType(e, m.ICMP, false)
	return icmpType(e, m.NotICMP, true), true
}

func icmpType(e nft.Expr, i *view.ICMP, not bool) nft.Expr {
	switch {
	case i == nil:
		return e
	case i.Code == nil:
		return e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, nft.Reg).Equal([]byte{i.Type}, not)
	}
	return e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, nft.Reg).Equal([]byte{i.Type, *i.Code}, not)
}

func (c *compiler) sideMatch(ways []nft.Expr, s side, m view.Match) []nft.Expr {
	ways = c.nets(ways, s, m.Nets, false)
	ways = c.nets(ways, s, m.NotNets, true)
	each := func(f func(nft.Expr) nft.Expr) {
		for i, e := range ways {
			ways[i] = f(e)
		}
	}
	for _, id := range m.Sets {
		each(func(e nft.Expr) nft.Expr { return c.address(e, s).Lookup(kernelSet(c.family, id), false) })
	}
	for _, id := range m.NotSets {
		each(func(e nft.Expr) nft.Expr { return c.address(e, s).Lookup(kernelSet(c.family, id), true) })
	}
	for _, id := range m.IPPortSets {
		each(func(e nft.Expr) nft.Expr { return c.addressPort(e, s).Lookup(kernelSet(c.family, id), false) })
	}
	for _, id := range m.NotNamedPorts {
		each(func(e nft.Expr) nft.Expr { return c.addressPort(e, s).Lookup(kernelSet(c.family, id), true) })
	}
	if len(m.NotPorts) > 0 {
		each(func(e nft.Expr) nft.Expr { return c.ports(e, s, m.NotPorts, true) })
	}
	if len(m.Ports) == 0 && len(m.NamedPorts) == 0 {
		return ways
	}
	var out []nft.Expr
	for _, e := range ways {
		if len(m.Ports) > 0 {
			out = append(out, c.ports(slices.Clone(e), s, m.Ports, false))
		}
		for _, id := range m.NamedPorts {
			out = append(out, c.addressPort(slices.Clone(e), s).Lookup(kernelSet(c.family, id), false))
		}
	}
	return out
}

// nets matches a list of prefixes. As in Calico, a rule with a list that has no prefix of the family, negated or not, is
// about the other family and does not apply.
func (c *compiler) nets(ways []nft.Expr, s side, nets []netip.Prefix, not bool) []nft.Expr {
	if len(nets) == 0 {
		return ways
	}
	var mine []netip.Prefix
	for _, p := range nets {
		if p.Addr().Is4() == (c.family == nft.IP4) {
			mine = append(mine, p.Masked())
		}
	}
	everything := slices.ContainsFunc(mine, func(p netip.Prefix) bool { return p.Bits() == 0 })
	if len(mine) == 0 || everything && not {
		return nil
	}
	if everything {
		return ways
	}
	for i, e := range ways {
		ways[i] = c.net(e, s, mine, not)
	}
	return ways
}

func (c *compiler) net(e nft.Expr, s side, nets []netip.Prefix, not bool) nft.Expr {
	e = c.address(e, s)
	if len(nets) > 1 {
		elements := prefixElements(c.family, nets)
		name := contentSet(c.family, "nets", elements)
		c.sets[name] = contents{nft.SetSpec{Key: c.family.Address(), Interval: true}, elements}
		return e.Lookup(name, not)
	}
	addr := nets[0].Addr().AsSlice()
	if !nets[0].IsSingleIP() {
		mask := make([]byte, len(addr))
		for i := range nets[0].Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		e = e.Mask(mask, make([]byte, len(addr)))
	}
	return e.Equal(addr, not)
}

func prefixElements(f nft.Family, nets []netip.Prefix) []string {
	elements := map[string]struct{}{}
	version := 4
	if f == nft.IP6 {
		version = 6
	}
	s := ipset.New(view.SetNet, version, func(e ipset.Element, in bool) {
		if in {
			elements[string(e)] = struct{}{}
			return
		}
		delete(elements, string(e))
	})
	for _, p := range nets {
		s.Add(view.Member{Prefix: p})
	}
	return sorted(elements)
}

func sorted(set map[string]struct{}) []string {
	out := make([]string, 0, len(set))
	for e := range set {
		out = append(out, e)
	}
	slices.Sort(out)
	return out
}

// ports matches a list of port ranges. The protocol is the rule's own; validation asks for one that has ports.
func (c *compiler) ports(e nft.Expr, s side, ranges []view.PortRange, not bool) nft.Expr {
	e = e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, s.port, 2, nft.Reg)
	ranges = model.MergePorts(ranges)
	if len(ranges) == 1 {
		if r := ranges[0]; r.First == r.Last {
			return e.Equal(be16(r.First), not)
		}
		return e.Range(be16(ranges[0].First), be16(ranges[0].Last), not)
	}
	var elements []string
	for _, r := range ranges {
		end := ""
		if r.Last < 65535 {
			end = string(be16(r.Last + 1))
		}
		elements = append(elements, string(be16(r.First))+end)
	}
	name := contentSet(c.family, "ports", elements)
	c.sets[name] = contents{nft.SetSpec{Key: nft.Port, Interval: true}, elements}
	return e.Lookup(name, not)
}

func be16(v uint16) []byte { return []byte{byte(v >> 8), byte(v)} }

// address loads a side's address.
func (c *compiler) address(e nft.Expr, s side) nft.Expr { return c.addressTo(e, s, nft.Reg) }

func (c *compiler) addressTo(e nft.Expr, s side, reg uint32) nft.Expr {
	offset := s.addr4
	if c.family == nft.IP6 {
		offset = s.addr6
	}
	return e.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, uint32(c.family.AddressLen()), reg)
}

// addressPort loads a side's address, the protocol and the side's port, as the key of an ipset.Element of SetIPPort.
func (c *compiler) addressPort(e nft.Expr, s side) nft.Expr {
	next := uint32(nft.Reg32 + c.family.AddressLen()/4)
	e = c.addressTo(e, s, nft.Reg32)
	e = e.Meta(unix.NFT_META_L4PROTO, next)
	return e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, s.port, 2, next+1)
}
