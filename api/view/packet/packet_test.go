package packet_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
)

type sets map[string]*packet.Members

func (s sets) Contains(id string, a netip.Addr) bool { return s[id] != nil && s[id].Contains(a) }
func (s sets) ContainsPort(id string, a netip.Addr, protocol view.Protocol, port uint16) bool {
	return s[id] != nil && s[id].ContainsPort(a, protocol, port)
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestMatches(t *testing.T) {
	known := sets{
		"s:a":    packet.NewMembers([]view.Member{{Prefix: netip.MustParsePrefix("10.0.0.0/24")}, {Prefix: netip.MustParsePrefix("fd00::/64")}}),
		"n:http": packet.NewMembers([]view.Member{{Prefix: netip.MustParsePrefix("10.0.1.2/32"), Protocol: 6, Port: 80}}),
	}
	code := uint8(3)
	four := packet.Packet{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("10.0.1.2"), Protocol: 6, SourcePort: 4000, DestinationPort: 80}
	six := packet.Packet{Source: netip.MustParseAddr("fd00::1"), Destination: netip.MustParseAddr("fd01::2"), Protocol: 6, SourcePort: 4000, DestinationPort: 80}
	ping := packet.Packet{Source: four.Source, Destination: four.Destination, Protocol: packet.ICMP, ICMP: &view.ICMP{Type: 8, Code: new(uint8)}}
	nameless := four
	nameless.SourcePort = 0
	side := func(m view.Match) view.Rule { return view.Rule{Destination: m} }
	from := func(m view.Match) view.Rule { return view.Rule{Source: m} }
	for name, c := range map[string]struct {
		p    packet.Packet
		rule view.Rule
		want bool
	}{
		"nothing asked":                  {four, view.Rule{}, true},
		"version":                        {four, view.Rule{IPVersion: 4}, true},
		"other version":                  {six, view.Rule{IPVersion: 4}, false},
		"protocol":                       {four, view.Rule{Protocol: 6}, true},
		"other protocol":                 {four, view.Rule{Protocol: 17}, false},
		"not protocol":                   {four, view.Rule{NotProtocol: 6}, false},
		"net":                            {four, from(view.Match{Nets: prefixes("192.168.0.0/16", "10.0.0.0/24")}), true},
		"nets of the other family":       {four, from(view.Match{Nets: prefixes("fd00::/64")}), false},
		"not in nets":                    {four, from(view.Match{NotNets: prefixes("192.168.0.0/16")}), true},
		"not in nets, but it is":         {four, from(view.Match{NotNets: prefixes("10.0.0.0/24")}), false},
		"not in nets of the other":       {four, from(view.Match{NotNets: prefixes("fd00::/64")}), false},
		"set":                            {four, from(view.Match{Sets: []string{"s:a"}}), true},
		"set, IPv6":                      {six, from(view.Match{Sets: []string{"s:a"}}), true},
		"all sets":                       {four, from(view.Match{Sets: []string{"s:a", "s:unknown"}}), false},
		"not in set":                     {four, side(view.Match{NotSets: []string{"s:a"}}), true},
		"port":                           {four, side(view.Match{Ports: []view.PortRange{{First: 70, Last: 90}}}), true},
		"other port":                     {four, side(view.Match{Ports: []view.PortRange{{First: 81, Last: 90}}}), false},
		"named port beside":              {four, side(view.Match{Ports: []view.PortRange{{First: 81, Last: 90}}, NamedPorts: []string{"n:http"}}), true},
		"not named port":                 {four, side(view.Match{NotNamedPorts: []string{"n:http"}}), false},
		"service":                        {four, side(view.Match{IPPortSets: []string{"n:http"}}), true},
		"source port":                    {four, from(view.Match{Ports: []view.PortRange{{First: 4000, Last: 4000}}}), true},
		"source port that is not known":  {nameless, from(view.Match{Ports: []view.PortRange{{First: 0, Last: 65535}}}), false},
		"not that port, not known":       {nameless, from(view.Match{NotPorts: []view.PortRange{{First: 0, Last: 65535}}}), true},
		"type":                           {ping, view.Rule{Protocol: 1, ICMP: &view.ICMP{Type: 8}}, true},
		"type without protocol":          {ping, view.Rule{ICMP: &view.ICMP{Type: 8}}, true},
		"type and other code":            {ping, view.Rule{ICMP: &view.ICMP{Type: 8, Code: &code}}, false},
		"not type":                       {ping, view.Rule{NotICMP: &view.ICMP{Type: 8}}, false},
		"a type is of ICMP":              {four, view.Rule{NotICMP: &view.ICMP{Type: 8}}, false},
		"ICMPv6 is none of IPv4":         {ping, view.Rule{Protocol: packet.ICMPv6}, false},
		"source and destination at once": {four, view.Rule{Source: view.Match{Sets: []string{"s:a"}}, Destination: view.Match{Sets: []string{"s:a"}}}, false},
	} {
		assert.Equal(t, c.want, c.p.Matches(packet.Of(&c.rule), known), name)
	}
}

// What is found fast is what is found slowly, also in lists that are not in order and with prefixes that are not masked.
func TestMembers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Addr {
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(3)), byte(r.IntN(4))})
		}
		return netip.AddrFrom16([16]byte{0xfd, 14: byte(r.IntN(3)), 15: byte(r.IntN(4))})
	}
	for range 500 {
		var all []view.Member
		for range r.IntN(8) {
			a := random()
			all = append(all, view.Member{Prefix: netip.PrefixFrom(a, a.BitLen()-r.IntN(10)), Protocol: view.Protocol(r.IntN(2)), Port: uint16(r.IntN(2))})
		}
		m := packet.NewMembers(all)
		for range 20 {
			a, protocol, port := random(), view.Protocol(r.IntN(2)), uint16(r.IntN(2))
			in := false
			for _, x := range all {
				in = in || x.Prefix.Contains(a) && x.Protocol == protocol && x.Port == port
			}
			require.Equal(t, in, m.ContainsPort(a, protocol, port), "%v in %v", a, all)
		}
	}
}

// TestUnknown: what a packet lacks is named where it alone keeps open whether a rule matches.
func TestUnknown(t *testing.T) {
	known := sets{"n:http": packet.NewMembers([]view.Member{{Prefix: netip.MustParsePrefix("10.0.1.2/32"), Protocol: 6, Port: 80}})}
	code := uint8(3)
	of := func(protocol view.Protocol, source, destination uint16, icmp *view.ICMP) packet.Packet {
		return packet.Packet{
			Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("10.0.1.2"), Protocol: protocol,
			SourcePort: source, DestinationPort: destination, ICMP: icmp,
		}
	}
	port := view.Match{Ports: []view.PortRange{{First: 22, Last: 22}}}
	echo, coded := &view.ICMP{Type: 8}, &view.ICMP{Type: 8, Code: &code}
	for name, c := range map[string]struct {
		p    packet.Packet
		rule view.Rule
		want string
	}{
		"nothing is asked":         {of(6, 0, 0, nil), view.Rule{Protocol: 6}, ""},
		"type":                     {of(1, 0, 0, nil), view.Rule{ICMP: echo}, "type of ICMP"},
		"not the type":             {of(1, 0, 0, nil), view.Rule{NotICMP: echo}, "type of ICMP"},
		"both":                     {of(1, 0, 0, nil), view.Rule{ICMP: echo, NotICMP: coded}, "type of ICMP"},
		"type that is known":       {of(1, 0, 0, echo), view.Rule{ICMP: echo}, ""},
		"code":                     {of(1, 0, 0, echo), view.Rule{ICMP: coded}, "code of ICMP"},
		"code of another type":     {of(1, 0, 0, &view.ICMP{Type: 3}), view.Rule{ICMP: coded}, ""},
		"code that is known":       {of(1, 0, 0, coded), view.Rule{ICMP: coded}, ""},
		"type of no ICMP":          {of(6, 1, 1, nil), view.Rule{ICMP: echo}, ""},
		"type, but for IPv6":       {of(1, 0, 0, nil), view.Rule{Protocol: packet.ICMPv6, ICMP: echo}, ""},
		"type, but from elsewhere": {of(1, 0, 0, nil), view.Rule{ICMP: echo, Source: view.Match{Nets: prefixes("10.9.0.0/16")}}, ""},
		"source port":              {of(6, 0, 80, nil), view.Rule{Source: port}, "source port"},
		"not the source port":      {of(6, 0, 80, nil), view.Rule{Source: view.Match{NotPorts: port.Ports}}, "source port"},
		"source port by name":      {of(6, 0, 80, nil), view.Rule{Source: view.Match{NamedPorts: []string{"n:http"}}}, "source port"},
		"source port, and another": {of(6, 0, 80, nil), view.Rule{Source: port, Destination: port}, ""},
		"source port of UDP":       {of(6, 0, 80, nil), view.Rule{Protocol: 17, Source: port}, ""},
		"no ports at all":          {of(47, 0, 0, nil), view.Rule{Source: port}, ""},
		"both ports":               {of(6, 0, 0, nil), view.Rule{Source: port, Destination: port}, "source port and destination port"},
		"a service":                {of(6, 4000, 0, nil), view.Rule{Destination: view.Match{IPPortSets: []string{"n:http"}}}, "destination port"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, c.p.Unknown(packet.Of(&c.rule), known))
		})
	}
}
