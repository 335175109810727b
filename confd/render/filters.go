package render

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/bgp"
)

// usedFilters renders the filters that peers name.
func (r *renderer) usedFilters() {
	for name, f := range r.filters {
		if !slices.ContainsFunc(r.out.Peers, func(p Peer) bool { return slices.Contains(p.Filters, name) }) {
			continue
		}
		r.out.Filters = append(r.out.Filters, bgp.Filter{
			Name:    name,
			Import4: r.rules4(name, "importV4", f.Spec.ImportV4), Export4: r.rules4(name, "exportV4", f.Spec.ExportV4),
			Import6: r.rules6(name, "importV6", f.Spec.ImportV6), Export6: r.rules6(name, "exportV6", f.Spec.ExportV6),
		})
	}
	slices.SortFunc(r.out.Filters, func(a, b bgp.Filter) int { return strings.Compare(a.Name, b.Name) })
}

func (r *renderer) rules4(filter, list string, rules []api.BGPFilterRuleV4) []bgp.Rule {
	var out []bgp.Rule
	for i, rule := range rules {
		var lo, hi *int32
		if rule.PrefixLength != nil {
			lo, hi = rule.PrefixLength.Min, rule.PrefixLength.Max
		}
		out = r.appendRule(out, fmt.Sprintf("BGPFilter(%s).spec.%s[%d]", filter, list, i), false, rule.BGPFilterRule, lo, hi)
	}
	return out
}

func (r *renderer) rules6(filter, list string, rules []api.BGPFilterRuleV6) []bgp.Rule {
	var out []bgp.Rule
	for i, rule := range rules {
		var lo, hi *int32
		if rule.PrefixLength != nil {
			lo, hi = rule.PrefixLength.Min, rule.PrefixLength.Max
		}
		out = r.appendRule(out, fmt.Sprintf("BGPFilter(%s).spec.%s[%d]", filter, list, i), true, rule.BGPFilterRule, lo, hi)
	}
	return out
}

// appendRule adds a rule. One that cannot be understood must not let more through than it says: it stays in its place and
// rejects all that it might have meant.
func (r *renderer) appendRule(out []bgp.Rule, where string, v6 bool, rule api.BGPFilterRule, lo, hi *int32) []bgp.Rule {
	next := bgp.Rule{
		Accept: rule.Action == api.Accept, FromRemotePeers: rule.Source == api.SourceRemotePeers, Interface: rule.Interface,
		SessionType: map[api.BGPFilterPeerType]bgp.SessionType{api.PeerEBGP: bgp.External, api.PeerIBGP: bgp.Internal}[rule.PeerType],
	}
	unreadable := func(field string) []bgp.Rule {
		r.warn("%s: rejects every route, since its %s cannot be read", where, field)
		return append(out, bgp.Rule{})
	}
	if rule.CIDR != "" {
		p, ok := r.prefix(where+".cidr", rule.CIDR)
		if !ok || p.Addr().Is6() != v6 {
			return unreadable("cidr")
		}
		next.Prefix, next.Operator = p, map[api.BGPFilterMatchOperator]bgp.Operator{
			api.MatchEqual: bgp.Equal, api.MatchNotEqual: bgp.NotEqual, api.MatchIn: bgp.In, api.MatchNotIn: bgp.NotIn,
		}[rule.MatchOperator]
		if next.Operator == bgp.NoPrefix {
			next.Operator = bgp.In
			r.warn("%s.matchOperator: is missing; it is taken as In", where)
		}
	}
	switch ranged := lo != nil || hi != nil; {
	case !ranged:
	case next.Operator == bgp.Equal:
		r.warn("%s: Equal with a range of lengths never matches; the rule is left out", where)
		return out
	case next.Operator == bgp.NotEqual:
		r.warn("%s: NotEqual with a range of lengths always matches; the cidr is left out", where)
		next.Prefix, next.Operator = bgp.Rule{}.Prefix, bgp.NoPrefix
	case next.Operator == bgp.NoPrefix:
		r.warn("%s.prefixLength: needs a cidr; it is left out", where)
	default:
		next.MinLength, next.MaxLength = length(lo), length(hi)
		if hi != nil && *hi < int32(next.Prefix.Bits()) { // nothing inside the cidr is that short
			next.MinLength, next.MaxLength = next.Prefix.Addr().BitLen(), 1
		}
	}
	if c := rule.Communities; c != nil && len(c.Values) > 0 {
		var ok bool
		if next.Community, ok = r.community(where+".communities", string(c.Values[0])); !ok {
			return unreadable("community")
		}
	}
	for _, as := range rule.ASPathPrefix {
		next.ASPrefix = append(next.ASPrefix, uint32(as))
	}
	if rule.Priority != nil {
		if next.Priority = metric(*rule.Priority); next.Priority == 0 {
			return unreadable("priority")
		}
	}
	if next.Accept {
		next.Operations = r.operations(where+".operations", rule.Operations)
	}
	return append(out, next)
}

func length(n *int32) int {
	if n == nil {
		return 0
	}
	return int(*n)
}

// metric is n if it can be a route's metric that local preference carries, and 0 otherwise.
func metric(n int) uint32 {
	if n < 1 || n > math.MaxInt32-1 {
		return 0
	}
	return uint32(n)
}

// operations reads what a rule changes. What cannot be read is left out: the route is still accepted, as the rule says.
func (r *renderer) operations(where string, list []api.BGPFilterOperation) []bgp.Operation {
	var out []bgp.Operation
	for i, op := range list {
		var next bgp.Operation
		at := fmt.Sprintf("%s[%d]", where, i)
		switch {
		case op.AddCommunity != nil:
			c, ok := r.community(at+".addCommunity", string(op.AddCommunity.Value))
			if !ok {
				continue
			}
			next.AddCommunity = c
		case op.PrependASPath != nil && len(op.PrependASPath.Prefix) > 0 && !slices.Contains(op.PrependASPath.Prefix, 0):
			for _, as := range op.PrependASPath.Prefix {
				next.Prepend = append(next.Prepend, uint32(as))
			}
		case op.SetPriority != nil && metric(op.SetPriority.Value) != 0:
			next.SetPriority = metric(op.SetPriority.Value)
		default:
			r.warn("%s: has no operation with a value in range; it is left out", at)
			continue
		}
		out = append(out, next)
	}
	return out
}

// reservedAS begins the communities with which bird marks routes (RFC 7300).
const reservedAS = math.MaxUint32

// community reads a community; what is none is left out with a warning.
func (r *renderer) community(where, s string) (*bgp.Community, bool) {
	c, err := bgp.ParseCommunity(s)
	switch {
	case err != nil:
		r.warn("%s: %v; it is left out", where, err)
	case c.Large && c.Parts[0] == reservedAS:
		r.warn("%s: community %s begins with a reserved AS number, with which bird marks routes; it is left out", where, c)
	default:
		return &c, true
	}
	return nil, false
}
