package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api/view"
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

// withPorts are the protocols that multiport knows, by the names that -p takes.
var withPorts = map[view.Protocol]string{protoTCP: "tcp", protoUDP: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}

// side says how a side of a packet is called.
type side struct {
	address string // -s, -d
	dir     string // in --match-set
	ports   string // of multiport
}

var (
	source      = side{address: "-s", dir: "src", ports: "--sports"}
	destination = side{address: "-d", dir: "dst", ports: "--dports"}
)

// match returns the ways in which a packet can match, each as the criteria of one rule: none if no packet of the family
// can, several where criteria are alternatives (numeric and named ports, more ports than one match takes).
func (c *compiler) match(m desired.Match) []string {
	if (m.IPVersion == 4 && c.v6) || (m.IPVersion == 6 && !c.v6) {
		return nil
	}
	ways := c.protocol(m)
	for _, s := range []struct {
		side
		view.Match
	}{{source, m.Source}, {destination, m.Destination}} {
		if len(ways) == 0 {
			return nil
		}
		ways = c.sideMatch(ways, s.side, s.Match)
	}
	return ways
}

// protocol begins the ways: one, or one for each protocol that has ports where the rule asks for ports of any.
func (c *compiler) protocol(m desired.Match) []string {
	icmp, foreign := view.Protocol(protoICMP), view.Protocol(protoICMPv6)
	if c.v6 {
		icmp, foreign = protoICMPv6, protoICMP
	}
	proto := m.Protocol
	if m.ICMP != nil || m.NotICMP != nil {
		if proto != 0 && proto != icmp {
			return nil
		}
		proto = icmp // types are of that protocol only
	}
	if proto == foreign || proto != 0 && proto == m.NotProtocol {
		return nil
	}
	switch {
	case proto != 0:
		return []string{protocolIs(proto) + c.icmpType(m.ICMP, false) + c.icmpType(m.NotICMP, true)}
	case hasPorts(m):
		var ways []string
		for p := range 256 {
			if name, ok := withPorts[view.Protocol(p)]; ok && view.Protocol(p) != m.NotProtocol {
				ways = append(ways, "-p "+name+" ")
			}
		}
		return ways
	case m.NotProtocol != 0:
		return []string{"! " + protocolIs(m.NotProtocol)}
	}
	return []string{""}
}

func hasPorts(m desired.Match) bool {
	return len(m.Source.Ports)+len(m.Source.NotPorts)+len(m.Destination.Ports)+len(m.Destination.NotPorts) > 0
}

func protocolIs(p view.Protocol) string {
	if name, ok := withPorts[p]; ok {
		return "-p " + name + " "
	}
	switch p {
	case protoICMP:
		return "-p icmp "
	case protoICMPv6:
		return "-p ipv6-icmp "
	}
	return fmt.Sprintf("-p %d ", p)
}

func (c *compiler) icmpType(i *view.ICMP, not bool) string {
	if i == nil {
		return ""
	}
	value := strconv.Itoa(int(i.Type))
	if i.Code != nil {
		value += "/" + strconv.Itoa(int(*i.Code))
	}
	if c.v6 {
		return "-m icmp6 " + unless(not) + "--icmpv6-type " + value + " "
	}
	return "-m icmp " + unless(not) + "--icmp-type " + value + " "
}

func unless(not bool) string {
	if not {
		return "! "
	}
	return ""
}

func (c *compiler) sideMatch(ways []string, s side, m view.Match) []string {
	each := func(more string) {
		for i := range ways {
			ways[i] += more
		}
	}
	plain, ok := c.nets(s, m.Nets, false, true)
	if !ok {
		return nil
	}
	each(plain)
	none, ok := c.nets(s, m.NotNets, true, plain == "" || strings.HasPrefix(plain, "-m "))
	if !ok {
		return nil
	}
	each(none)
	for _, id := range m.Sets {
		each(c.inSet(s, id, false))
	}
	for _, id := range m.NotSets {
		each(c.inSet(s, id, true))
	}
	for _, id := range m.IPPortSets {
		each(c.inPortSet(s, id, false))
	}
	for _, id := range m.NotNamedPorts {
		each(c.inPortSet(s, id, true))
	}
	for _, list := range multiports(m.NotPorts) {
		each("-m multiport ! " + s.ports + " " + list + " ")
	}
	if len(m.Ports) == 0 && len(m.NamedPorts) == 0 {
		return ways
	}
	var out []string
	for _, w := range ways {
		for _, list := range multiports(m.Ports) {
			out = append(out, w+"-m multiport "+s.ports+" "+list+" ")
		}
		for _, id := range m.NamedPorts {
			out = append(out, w+c.inPortSet(s, id, false))
		}
	}
	return out
}

func (c *compiler) inSet(s side, id string, not bool) string {
	return "-m set " + unless(not) + "--match-set " + c.set(id) + " " + s.dir + " "
}

func (c *compiler) inPortSet(s side, id string, not bool) string {
	return "-m set " + unless(not) + "--match-set " + c.set(id) + " " + s.dir + "," + s.dir + " "
}

// set is the kernel's name of a set.
func (c *compiler) set(id string) string { return model.SetName(c.v6, id) }

// nets matches a list of prefixes. As in Calico, a rule with a list that has no prefix of the family, negated or not, is
// about the other family and does not apply: ok is false. A rule takes one plain address a side; free says that it is not
// taken.
func (c *compiler) nets(s side, nets []netip.Prefix, not, free bool) (_ string, ok bool) {
	if len(nets) == 0 {
		return "", true
	}
	var mine []netip.Prefix
	for _, p := range nets {
		if p.Addr().Is6() == c.v6 {
			mine = append(mine, p.Masked())
		}
	}
	everything := slices.ContainsFunc(mine, func(p netip.Prefix) bool { return p.Bits() == 0 })
	switch {
	case len(mine) == 0 || everything && not:
		return "", false
	case everything:
		return "", true
	case len(mine) == 1 && free:
		return unless(not) + s.address + " " + mine[0].String() + " ", true
	}
	content := make([]string, 0, len(mine))
	for _, p := range mine {
		content = append(content, p.String())
	}
	slices.Sort(content)
	id := contentSet(slices.Compact(content))
	c.owned[id] = nil
	for _, p := range mine {
		c.owned[id] = append(c.owned[id], view.Member{Prefix: p})
	}
	return c.inSet(s, id, not), true
}

// multiports cuts a list of ranges into lists that one match takes: 15 ports, of which a range is two.
func multiports(ranges []view.PortRange) (out []string) {
	const limit = 15
	var list []string
	room := limit
	for _, r := range model.MergePorts(ranges) {
		text, need := strconv.Itoa(int(r.First)), 1
		if r.First != r.Last {
			text, need = text+":"+strconv.Itoa(int(r.Last)), 2
		}
		if need > room {
			out = append(out, strings.Join(list, ","))
			list, room = nil, limit
		}
		list, room = append(list, text), room-need
	}
	if len(list) > 0 {
		out = append(out, strings.Join(list, ","))
	}
	return out
}
