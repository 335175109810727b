package compute

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
)

// setSpec says what a set consists of. It is known from the rule alone: whether a set has members yet, or whether its
// service exists, makes no difference to the rules that name it.
type setSpec struct {
	id       string
	kind     view.SetType
	selector *selector.Selector // nil for services
	protocol view.Protocol      // of a named port; 0 for all
	port     string             // name of a named port
	service  string             // namespace/name
}

// addressSet is the set of the addresses that a selector selects.
func addressSet(s *selector.Selector) setSpec {
	return setSpec{id: s.ID(), kind: view.SetNet, selector: s}
}

// namedPortSet is the set of the ports of a name among what a selector selects.
func namedPortSet(s *selector.Selector, protocol view.Protocol, name string) setSpec {
	return setSpec{
		id:   setID("n", fmt.Sprintf("%s,%d,%s", s.ID(), protocol, name)),
		kind: view.SetIPPort, selector: s, protocol: protocol, port: name,
	}
}

// serviceSet is the set of the addresses behind a service, with their ports or without.
func serviceSet(service string, ports bool) setSpec {
	if ports {
		return setSpec{id: setID("svc", service), kind: view.SetIPPort, service: service}
	}
	return setSpec{id: setID("svcnoport", service), kind: view.SetNet, service: service}
}

// setID is how Calico names sets: the kind, and the unpadded base64url SHA-224 of kind and content.
func setID(kind, content string) string {
	sum := sha256.Sum224([]byte(kind + ":" + content))
	return kind + ":" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// translator turns the rules of one policy into those of a view, and gathers the sets they need.
type translator struct {
	namespace string // of the policy, empty for global ones and profiles
	sets      map[string]setSpec
	err       error // the first thing that could not be understood
}

func (t *translator) rules(rules []api.Rule) []view.Rule {
	var out []view.Rule
	for i := range rules {
		out = append(out, t.rule(&rules[i]))
	}
	return out
}

func (t *translator) rule(r *api.Rule) view.Rule {
	v := view.Rule{Action: t.action(r.Action)}
	if r.IPVersion != nil {
		v.IPVersion = uint8(*r.IPVersion)
	}
	if r.Protocol != nil {
		v.Protocol = t.protocol(*r.Protocol)
		switch n, _ := r.Protocol.Number(); n {
		case 1: // ICMP
			v.IPVersion = 4
		case 58: // ICMPv6
			v.IPVersion = 6
		}
	}
	if r.NotProtocol != nil {
		v.NotProtocol = t.protocol(*r.NotProtocol)
	}
	v.ICMP = icmp(r.ICMP)
	v.NotICMP = icmp(r.NotICMP)
	v.Source = t.match(&r.Source, v.Protocol, false)
	v.Destination = t.match(&r.Destination, v.Protocol, true)
	if r.Metadata != nil && len(r.Metadata.Annotations) > 0 {
		v.Annotations = r.Metadata.Annotations
	}
	if r.HTTP != nil {
		v.HTTP = &view.HTTP{Methods: r.HTTP.Methods}
		for _, p := range r.HTTP.Paths {
			v.HTTP.Paths = append(v.HTTP.Paths, view.HTTPPath(p))
		}
	}
	return v
}

func (t *translator) action(a api.Action) view.Action {
	switch a {
	case api.Allow:
		return view.Allow
	case api.Deny:
		return view.Deny
	case api.Pass:
		return view.Pass
	case api.Log:
		return view.Log
	}
	t.fail(fmt.Errorf("action %q is none", a))
	return view.Deny
}

func (t *translator) protocol(p api.Protocol) view.Protocol {
	n, ok := p.Number()
	if !ok {
		t.fail(fmt.Errorf("protocol %q is none", p))
	}
	return view.Protocol(n)
}

func icmp(f *api.ICMPFields) *view.ICMP {
	if f == nil || f.Type == nil {
		return nil
	}
	v := &view.ICMP{Type: uint8(*f.Type)}
	if f.Code != nil {
		code := uint8(*f.Code)
		v.Code = &code
	}
	return v
}

// match translates one side of a rule.
func (t *translator) match(e *api.EntityRule, protocol view.Protocol, destination bool) view.Match {
	m := view.Match{Nets: t.nets(e.Nets), NotNets: t.nets(e.NotNets)}
	entity := selector.Entity{
		Selector:          t.selector(e.Selector),
		NotSelector:       t.selector(e.NotSelector),
		NamespaceSelector: t.selector(e.NamespaceSelector),
	}
	if a := e.ServiceAccounts; a != nil {
		entity.ServiceAccountNames = a.Names
		entity.ServiceAccountSelector = t.selector(a.Selector)
	}
	who := entity.Effective(t.namespace)
	if who != nil {
		m.Sets = append(m.Sets, t.need(addressSet(who)))
	}
	if entity.NotSelector != nil {
		m.NotSets = append(m.NotSets, t.need(addressSet(entity.NotSelector)))
	}
	if s := e.Services; s != nil {
		namespace := s.Namespace
		if namespace == "" {
			namespace = t.namespace
		}
		id := t.need(serviceSet(namespace+"/"+s.Name, destination))
		if destination {
			m.IPPortSets = append(m.IPPortSets, id)
		} else {
			m.Sets = append(m.Sets, id)
		}
	}
	if who == nil {
		who = selector.All()
	}
	m.Ports, m.NamedPorts = t.ports(e.Ports, who, protocol)
	m.NotPorts, m.NotNamedPorts = t.ports(e.NotPorts, who, protocol)
	return m
}

// ports separates numbers from names. A name stands for the ports of that name among who the rule is about.
func (t *translator) ports(ports []api.Port, who *selector.Selector, protocol view.Protocol) (ranges []view.PortRange, named []string) {
	for _, p := range ports {
		if p.IsNamed() {
			named = append(named, t.need(namedPortSet(who, protocol, p.Name)))
		} else {
			ranges = append(ranges, view.PortRange{First: p.First, Last: p.Last})
		}
	}
	return ranges, named
}

func (t *translator) need(s setSpec) string {
	t.sets[s.id] = s
	return s.id
}

// selector parses a field; an empty one is not given.
func (t *translator) selector(text string) *selector.Selector {
	if text == "" {
		return nil
	}
	s, err := selector.Parse(text)
	if err != nil {
		t.fail(err)
		return nil
	}
	return s
}

func (t *translator) nets(texts []string) []netip.Prefix {
	var nets []netip.Prefix
	for _, text := range texts {
		p, ok := parsePrefix(text)
		if !ok {
			t.fail(fmt.Errorf("%q is no network", text))
			continue
		}
		nets = append(nets, p)
	}
	return nets
}

func (t *translator) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// parsePrefix reads a network or a single address.
func parsePrefix(text string) (netip.Prefix, bool) {
	p, err := api.ParseNet(text)
	return p.Masked(), err == nil
}

// parsePrefixes reads what can be read.
func parsePrefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		if p, ok := parsePrefix(text); ok {
			out = append(out, p)
		}
	}
	return out
}
