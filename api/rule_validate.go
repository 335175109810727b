package api

import (
	"slices"
	"strings"
)

// Limits of rules and their lists.
const (
	maxRules = 1024
	maxNets  = 256
	maxPorts = 50
	maxHTTP  = 20
)

// ruleScope is what the place of a rule allows.
//
// +kubebuilder:object:generate=false
type ruleScope struct {
	direction  PolicyType
	namespaced bool // the rule's policy belongs to a namespace
}

// rules checks the rules of one direction.
func (c *checker) rules(at path, rules []Rule, s ruleScope) {
	c.atMost(at, len(rules), maxRules)
	for i := range rules {
		c.rule(at.index(i), &rules[i], s)
	}
}

func (c *checker) rule(at path, r *Rule, s ruleScope) {
	if r.Action == "" {
		c.bad(at.at("action"), nil, "is missing", "write Allow, Deny, Log or Pass")
	} else {
		oneOf(c, at.at("action"), r.Action, Allow, Deny, Log, Pass)
	}
	c.ruleProtocol(at, r)
	c.ruleFamily(at, r)
	c.rulePorts(at, r)
	c.entity(at.at("source"), &r.Source)
	c.entity(at.at("destination"), &r.Destination)
	c.ruleServices(at, r, s)
	if r.HTTP != nil {
		c.ruleHTTP(at, r, s)
	}
	if r.Metadata != nil {
		c.annotations(at.at("metadata").at("annotations"), r.Metadata.Annotations)
	}
}

func (c *checker) ruleProtocol(at path, r *Rule) {
	if r.IPVersion != nil && *r.IPVersion != 4 && *r.IPVersion != 6 {
		c.bad(at.at("ipVersion"), *r.IPVersion, "is not an IP version", "write 4 or 6, or leave it out for both")
	}
	for _, field := range []struct {
		name  string
		value *Protocol
	}{{"protocol", r.Protocol}, {"notProtocol", r.NotProtocol}} {
		if field.value == nil {
			continue
		}
		c.protocol(at.at(field.name), *field.value)
		if version := icmpVersion(*field.value); version != 0 && r.IPVersion != nil && *r.IPVersion != version {
			c.bad(at.at("ipVersion"), *r.IPVersion, "contradicts "+field.name+" "+string(*field.value), "leave ipVersion out, or write the protocol of that version: ICMP for 4, ICMPv6 for 6")
		}
	}
	if r.ICMP != nil && (r.Protocol == nil || icmpVersion(*r.Protocol) == 0) {
		c.bad(at.at("icmp"), nil, "is given, but the rule's protocol is not ICMP", "write protocol: ICMP or ICMPv6 beside it")
	}
	c.icmp(at.at("icmp"), r.ICMP)
	c.icmp(at.at("notICMP"), r.NotICMP)
}

// icmpVersion is the IP version that an ICMP protocol belongs to, 0 for all others.
func icmpVersion(p Protocol) int {
	switch n, _ := p.Number(); n {
	case 1:
		return 4
	case 58:
		return 6
	}
	return 0
}

func (c *checker) icmp(at path, f *ICMPFields) {
	if f == nil {
		return
	}
	if f.Type != nil {
		between(c, at.at("type"), *f.Type, 0, 254)
	}
	if f.Code != nil {
		between(c, at.at("code"), *f.Code, 0, 255)
		if f.Type == nil {
			c.bad(at.at("code"), *f.Code, "is given without a type", "write the type it belongs to")
		}
	}
}

// ruleFamily checks the networks, all of which must be of one family.
func (c *checker) ruleFamily(at path, r *Rule) {
	seen := anyFamily
	if r.IPVersion != nil {
		seen = family(*r.IPVersion)
	}
	for _, field := range []struct {
		at      path
		nets    []string
		negated bool
	}{
		{at.at("source").at("nets"), r.Source.Nets, false},
		{at.at("source").at("notNets"), r.Source.NotNets, true},
		{at.at("destination").at("nets"), r.Destination.Nets, false},
		{at.at("destination").at("notNets"), r.Destination.NotNets, true},
	} {
		c.atMost(field.at, len(field.nets), maxNets)
		unique(c, field.at, field.nets)
		for i, s := range field.nets {
			p, ok := c.net(field.at.index(i), s, anyFamily)
			if !ok {
				continue
			}
			if field.negated && p.Bits() == 0 {
				c.bad(field.at.index(i), s, "excludes every address, so the rule could never match", "remove it, or the rule")
			}
			switch f := familyOf(p.Addr()); {
			case seen == anyFamily:
				seen = f
			case seen != f && r.IPVersion != nil:
				c.bad(field.at.index(i), s, "is not of the rule's ipVersion", "write one rule for each family")
			case seen != f:
				c.bad(field.at.index(i), s, "is of another family than the networks before it", "write one rule for IPv4 and one for IPv6")
			}
		}
	}
}

// rulePorts checks the ports, and that the rule's protocol has any. A named port says its protocol itself.
func (c *checker) rulePorts(at path, r *Rule) {
	for _, field := range []struct {
		at    path
		ports []Port
	}{
		{at.at("source").at("ports"), r.Source.Ports},
		{at.at("source").at("notPorts"), r.Source.NotPorts},
		{at.at("destination").at("ports"), r.Destination.Ports},
		{at.at("destination").at("notPorts"), r.Destination.NotPorts},
	} {
		c.atMost(field.at, len(field.ports), maxPorts)
		for i, p := range field.ports {
			c.port(field.at.index(i), p)
		}
		if len(field.ports) == 0 {
			continue
		}
		numeric := slices.IndexFunc(field.ports, func(p Port) bool { return !p.IsNamed() })
		switch {
		case r.Protocol == nil && numeric >= 0:
			c.bad(field.at.index(numeric), field.ports[numeric].String(), "is a port number, but the rule has no protocol", "write protocol: TCP, UDP or SCTP")
		case r.Protocol != nil && !r.Protocol.SupportsPorts():
			c.bad(field.at.index(0), field.ports[0].String(), "is a port, but protocol "+string(*r.Protocol)+" has none", "write protocol: TCP, UDP or SCTP, or remove the ports")
		}
	}
}

func (c *checker) entity(at path, e *EntityRule) {
	c.selector(at.at("selector"), e.Selector, false)
	c.selector(at.at("notSelector"), e.NotSelector, false)
	c.selector(at.at("namespaceSelector"), e.NamespaceSelector, true)
	if sa := e.ServiceAccounts; sa != nil {
		for i, name := range sa.Names {
			c.name(at.at("serviceAccounts").at("names").index(i), name)
		}
		unique(c, at.at("serviceAccounts").at("names"), sa.Names)
		c.selector(at.at("serviceAccounts").at("selector"), sa.Selector, false)
	}
	if s := e.Services; s != nil {
		services := at.at("services")
		if s.Name == "" {
			c.bad(services.at("name"), nil, "is missing", "name the service")
		} else {
			c.name(services.at("name"), s.Name)
		}
		c.optionalName(services.at("namespace"), s.Namespace)
		for _, other := range []struct {
			name  string
			given bool
		}{
			{"selector", e.Selector != ""},
			{"notSelector", e.NotSelector != ""},
			{"namespaceSelector", e.NamespaceSelector != ""},
			{"nets", len(e.Nets) > 0},
			{"notNets", len(e.NotNets) > 0},
			{"serviceAccounts", e.ServiceAccounts != nil},
		} {
			if other.given {
				c.bad(services, s.Name, "cannot be combined with "+other.name, "remove one of the two, or write two rules")
			}
		}
	}
}

// ruleServices checks where services may be matched: at the far end only.
func (c *checker) ruleServices(at path, r *Rule, s ruleScope) {
	near, far := at.at("source"), at.at("destination")
	nearEnd, farEnd := &r.Source, &r.Destination
	if s.direction == Ingress {
		near, far, nearEnd, farEnd = far, near, farEnd, nearEnd
	}
	if nearEnd.Services != nil {
		c.bad(near.at("services"), nearEnd.Services.Name, "is at the policy's own end of the traffic", "move it to "+string(far)+".services")
	}
	if farEnd.Services != nil && farEnd.Services.Namespace == "" && !s.namespaced {
		c.bad(far.at("services").at("namespace"), nil, "is missing, and the policy has no namespace of its own", "say which namespace the service is in")
	}
	if d := &r.Destination; d.Services != nil && (len(d.Ports) > 0 || len(d.NotPorts) > 0) {
		c.bad(at.at("destination").at("ports"), nil, "cannot be combined with services, which stands for the service's own ports", "remove the ports")
	}
}

func (c *checker) ruleHTTP(at path, r *Rule, s ruleScope) {
	http := at.at("http")
	if s.direction != Ingress {
		c.bad(http, nil, "is given in an egress rule", "move the rule to ingress, or remove http")
	}
	if r.Action != Allow {
		c.bad(http, nil, "is given in a rule with action "+string(r.Action), "write action: Allow, or remove http")
	}
	if r.Protocol != nil {
		if n, _ := r.Protocol.Number(); n != 6 {
			c.bad(at.at("protocol"), string(*r.Protocol), "does not carry HTTP", "write protocol: TCP")
		}
	}
	c.atMost(http.at("methods"), len(r.HTTP.Methods), maxHTTP)
	unique(c, http.at("methods"), r.HTTP.Methods)
	c.atMost(http.at("paths"), len(r.HTTP.Paths), maxHTTP)
	for i, p := range r.HTTP.Paths {
		c.httpPath(http.at("paths").index(i), p)
	}
}

func (c *checker) httpPath(at path, p HTTPPath) {
	switch {
	case p.Exact == "" && p.Prefix == "":
		c.bad(at, nil, "is empty", "write exact: or prefix:")
		return
	case p.Exact != "" && p.Prefix != "":
		c.bad(at, p.Exact+" and "+p.Prefix, "has both exact and prefix", "write two paths")
		return
	}
	field, value := "exact", p.Exact
	if value == "" {
		field, value = "prefix", p.Prefix
	}
	if !strings.HasPrefix(value, "/") || strings.ContainsAny(value, "?# ") {
		c.bad(at.at(field), value, "is not the path of a URL", "begin it with /, and leave out queries, fragments and blanks")
	}
}
