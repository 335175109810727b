package oracle

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
)

// rule is a rule as a question.
type rule struct {
	action  api.Action
	matches func(Packet) bool
}

// criterion is one thing that a rule asks of a packet.
type criterion func(Packet) bool

// understand turns a rule of ours into a question. namespace is the policy's own, "" for global ones and profiles.
func (c *Cluster) understand(r *api.Rule, namespace string) (rule, error) {
	criteria := protocolCriteria(r)
	for _, end := range []struct {
		rule        *api.EntityRule
		destination bool
	}{{&r.Source, false}, {&r.Destination, true}} {
		more, err := c.entity(end.rule, end.destination, namespace)
		if err != nil {
			return rule{}, err
		}
		criteria = append(criteria, more...)
	}
	return rule{r.Action, func(p Packet) bool {
		return !slices.ContainsFunc(criteria, func(holds criterion) bool { return !holds(p) })
	}}, nil
}

func protocolCriteria(r *api.Rule) (all []criterion) {
	if r.IPVersion != nil {
		six := *r.IPVersion == 6
		all = append(all, func(p Packet) bool { return p.V6() == six })
	}
	if r.Protocol != nil {
		n := protocolNumber(*r.Protocol)
		all = append(all, func(p Packet) bool { return p.Protocol == n })
		switch n { // ICMP implies IPv4, ICMPv6 implies IPv6
		case ICMP, ICMPv6:
			all = append(all, Packet.icmp)
		}
	}
	if r.NotProtocol != nil {
		n := protocolNumber(*r.NotProtocol)
		all = append(all, func(p Packet) bool { return p.Protocol != n })
	}
	is := func(f *api.ICMPFields) criterion {
		return func(p Packet) bool { return int(p.Type) == *f.Type && (f.Code == nil || int(p.Code) == *f.Code) }
	}
	if r.ICMP != nil && r.ICMP.Type != nil {
		all = append(all, Packet.icmp, is(r.ICMP))
	}
	if r.NotICMP != nil && r.NotICMP.Type != nil { // every other type: of ICMP, nothing else has any
		it := is(r.NotICMP)
		all = append(all, Packet.icmp, func(p Packet) bool { return !it(p) })
	}
	return all
}

// entity are the criteria of one end.
func (c *Cluster) entity(e *api.EntityRule, destination bool, namespace string) (all []criterion, err error) {
	address := func(p Packet) netip.Addr { return p.Source }
	port := func(p Packet) Port { return Port{p.Protocol, p.SourcePort} }
	if destination {
		address = func(p Packet) netip.Addr { return p.Destination }
		port = func(p Packet) Port { return Port{p.Protocol, p.DestinationPort} }
	}
	within := func(nets []netip.Prefix) criterion {
		return func(p Packet) bool {
			return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(address(p)) })
		}
	}
	// A rule with networks of one family says nothing of the other, negated or not.
	ofFamily := func(nets []netip.Prefix) criterion {
		return func(p Packet) bool {
			return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Addr().Is6() == p.V6() })
		}
	}
	if list := nets(e.Nets); len(e.Nets) > 0 {
		all = append(all, within(list))
	}
	if list := nets(e.NotNets); len(e.NotNets) > 0 {
		in := within(list)
		all = append(all, ofFamily(list), func(p Packet) bool { return !in(p) })
	}
	who, restricted, err := selected(e, namespace)
	if err != nil {
		return nil, err
	}
	if restricted {
		all = append(all, func(p Packet) bool { return c.any(address(p), who) })
	}
	if e.NotSelector != "" {
		not, err := parseSelector(e.NotSelector)
		if err != nil {
			return nil, err
		}
		all = append(all, func(p Packet) bool {
			return !c.any(address(p), func(t *thing) bool { return not(t.labels, field{}) })
		})
	}
	if s := e.Services; s != nil {
		all = append(all, c.service(s, destination, namespace, address, port))
	}
	one := func(ports []api.Port) criterion {
		return func(p Packet) bool {
			return slices.ContainsFunc(ports, func(want api.Port) bool {
				if want.IsNamed() {
					return c.any(address(p), func(t *thing) bool { return who(t) && t.port(want.Name, port(p)) })
				}
				return want.First <= port(p).Number && port(p).Number <= want.Last
			})
		}
	}
	if len(e.Ports) > 0 {
		all = append(all, one(e.Ports))
	}
	if len(e.NotPorts) > 0 {
		in := one(e.NotPorts)
		all = append(all, func(p Packet) bool { return !in(p) })
	}
	return all, nil
}

// any tells whether an address is of something that is meant.
func (c *Cluster) any(a netip.Addr, meant func(*thing) bool) bool {
	return slices.ContainsFunc(c.things, func(t *thing) bool { return t.has(a) && meant(t) })
}

// selected says whom the selectors of one end mean together; restricted is false if they mean any address at all
// (spec §2, rule entity).
func selected(e *api.EntityRule, namespace string) (who func(*thing) bool, restricted bool, err error) {
	var all []func(*thing) bool
	add := func(text string, at field) {
		s, failed := parseSelector(text)
		if failed != nil {
			err = failed
			return
		}
		all = append(all, func(t *thing) bool { return s(t.labels, at) })
	}
	if e.Selector != "" {
		add(e.Selector, field{})
	}
	if a := e.ServiceAccounts; a != nil {
		if len(a.Names) > 0 {
			all = append(all, func(t *thing) bool { return slices.Contains(a.Names, t.labels[labelServiceAccount]) })
		}
		if a.Selector != "" {
			add(a.Selector, field{prefix: ofServiceAccount})
		}
	}
	switch {
	case e.NamespaceSelector != "":
		add(e.NamespaceSelector, field{prefix: ofNamespace, all: labelNamespace})
	case namespace != "" && (len(all) > 0 || e.NotSelector != ""):
		all = append(all, func(t *thing) bool { return t.labels[labelNamespace] == namespace })
	}
	return func(t *thing) bool {
		return !slices.ContainsFunc(all, func(holds func(*thing) bool) bool { return !holds(t) })
	}, len(all) > 0, err
}

// service matches what stands behind a Service: with its ports as a destination, without as a source.
func (c *Cluster) service(s *api.ServiceMatch, destination bool, namespace string, address func(Packet) netip.Addr, port func(Packet) Port) criterion {
	name := s.Namespace + "/" + s.Name
	if s.Namespace == "" {
		name = namespace + "/" + s.Name
	}
	return func(p Packet) bool {
		return slices.ContainsFunc(c.services, func(s Service) bool {
			return s.Name == name && slices.Contains(s.Addresses, address(p)) &&
				(!destination || slices.Contains(s.Ports, port(p)))
		})
	}
}
