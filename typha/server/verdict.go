package server

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
)

// packet is what policy is asked about. Source ports and ICMP types are not known: a rule that asks for them does not
// match.
type packet struct {
	src, dst netip.Addr
	protocol view.Protocol
	port     uint16
}

// judgement evaluates the policies of one endpoint as its node's view has them: rule by rule, the way they are written
// down and not the way they are programmed.
type judgement struct {
	views *views.Store
	scope views.Scope
}

// endOfAll is the rule number of a verdict that no rule gave.
const endOfAll = -1

// decide says what becomes of a packet at an endpoint.
func (j judgement) decide(e view.WorkloadEndpoint, egress bool, p packet) *typhav1.Decision {
	d := &typhav1.Decision{Endpoint: e.ID.String(), Egress: egress, Rule: endOfAll}
	if len(e.Incomplete) > 0 {
		d.By = "the endpoint is closed: not known yet: " + e.Incomplete[0]
		return d
	}
	list, ok := item[view.PolicyList](j, view.KindPolicyList, e.PolicyList)
	if !ok {
		d.By = "the endpoint is closed: its policies are not known yet"
		return d
	}
	for _, tier := range list.Tiers {
		ids := tier.Ingress
		if egress {
			ids = tier.Egress
		}
		action, by, rule, enforced := j.first(ids, egress, p)
		switch {
		case action == view.Allow || action == view.Deny:
			d.Allowed, d.By, d.Rule = action == view.Allow, by, int32(rule)
			return d
		case action != view.Pass && enforced && tier.DefaultAction != view.Pass:
			d.By = "end of tier " + tier.Name
			return d
		}
	}
	if action, by, rule, _ := j.first(list.Profiles, egress, p); action == view.Allow || action == view.Deny {
		d.Allowed, d.By, d.Rule = action == view.Allow, by, int32(rule)
		return d
	}
	d.By = "no policy and no profile allows it"
	return d
}

// first is the first rule of the policies that decides; action is 0 if none does. enforced tells whether there is a
// policy at all that counts: staged ones do not.
func (j judgement) first(ids []string, egress bool, p packet) (action view.Action, by string, rule int, enforced bool) {
	for _, id := range ids {
		policy, ok := item[view.Policy](j, view.KindPolicy, id)
		if !ok || policy.Staged {
			continue
		}
		enforced = true
		rules := policy.Ingress
		if egress {
			rules = policy.Egress
		}
		for i, r := range rules {
			if r.Action != view.Log && j.matches(r, p) {
				return r.Action, id, i, true
			}
		}
	}
	return 0, "", endOfAll, enforced
}

func (j judgement) matches(r view.Rule, p packet) bool {
	version := uint8(4)
	if p.dst.Is6() {
		version = 6
	}
	switch {
	case r.IPVersion != 0 && r.IPVersion != version,
		r.Protocol != 0 && r.Protocol != p.protocol,
		r.NotProtocol != 0 && r.NotProtocol == p.protocol,
		r.ICMP != nil:
		return false
	}
	return j.side(r.Source, p.src, p.protocol, 0) && j.side(r.Destination, p.dst, p.protocol, p.port)
}

// side matches one side of a rule. A port of 0 is one that is not known.
func (j judgement) side(m view.Match, a netip.Addr, protocol view.Protocol, port uint16) bool {
	within := func(n netip.Prefix) bool { return n.Contains(a) }
	inNet := func(id string) bool { return j.member(id, func(m view.Member) bool { return m.Prefix.Contains(a) }) }
	inPort := func(id string) bool {
		return j.member(id, func(m view.Member) bool { return m.Prefix.Contains(a) && m.Protocol == protocol && m.Port == port })
	}
	inRange := func(r view.PortRange) bool { return port != 0 && r.First <= port && port <= r.Last }
	notIn := func(in func(string) bool) func(string) bool { return func(id string) bool { return !in(id) } }
	switch {
	case len(m.Nets) > 0 && !slices.ContainsFunc(m.Nets, within),
		slices.ContainsFunc(m.NotNets, within),
		slices.ContainsFunc(m.Sets, notIn(inNet)),
		slices.ContainsFunc(m.NotSets, inNet),
		slices.ContainsFunc(m.IPPortSets, notIn(inPort)),
		len(m.Ports)+len(m.NamedPorts) > 0 && !slices.ContainsFunc(m.Ports, inRange) && !slices.ContainsFunc(m.NamedPorts, inPort),
		slices.ContainsFunc(m.NotPorts, inRange),
		slices.ContainsFunc(m.NotNamedPorts, inPort):
		return false
	}
	return true
}

func (j judgement) member(id string, is func(view.Member) bool) bool {
	set, _ := item[view.IPSet](j, view.KindIPSet, id)
	return slices.ContainsFunc(set.Members, is)
}

func item[T view.Item](j judgement, kind view.Kind, id string) (T, bool) {
	e := j.views.Get(j.scope, view.Key{Kind: kind, ID: id})
	if e == nil {
		var none T
		return none, false
	}
	it, ok := e.Item.(T)
	return it, ok
}
