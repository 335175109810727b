package render

import (
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// usedFilters renders the filters that peers name.
func (r *renderer) usedFilters() {
	for name, f := range r.filters {
		if !slices.ContainsFunc(r.out.Peers, func(p Peer) bool { return slices.Contains(p.Filters, name) }) {
			continue
		}
		r.out.Filters = append(r.out.Filters, Filter{
			Name:    name,
			Import4: r.rules4(name, "importV4", f.Spec.ImportV4), Export4: r.rules4(name, "exportV4", f.Spec.ExportV4),
			Import6: r.rules6(name, "importV6", f.Spec.ImportV6), Export6: r.rules6(name, "exportV6", f.Spec.ExportV6),
		})
	}
	slices.SortFunc(r.out.Filters, func(a, b Filter) int { return strings.Compare(a.Name, b.Name) })
}

func (r *renderer) rules4(filter, list string, rules []api.BGPFilterRuleV4) []Rule {
	var out []Rule
	for i, rule := range rules {
		var lo, hi *int32
		if rule.PrefixLength != nil {
			lo, hi = rule.PrefixLength.Min, rule.PrefixLength.Max
		}
		out = r.appendRule(out, fmt.Sprintf("BGPFilter(%s).spec.%s[%d]", filter, list, i), rule.BGPFilterRule, lo, hi)
	}
	return out
}

func (r *renderer) rules6(filter, list string, rules []api.BGPFilterRuleV6) []Rule {
	var out []Rule
	for i, rule := range rules {
		var lo, hi *int32
		if rule.PrefixLength != nil {
			lo, hi = rule.PrefixLength.Min, rule.PrefixLength.Max
		}
		out = r.appendRule(out, fmt.Sprintf("BGPFilter(%s).spec.%s[%d]", filter, list, i), rule.BGPFilterRule, lo, hi)
	}
	return out
}

// appendRule adds a rule. One that cannot be understood must not let more through than it says: it stays in its place and
// rejects all that it might have meant.
func (r *renderer) appendRule(out []Rule, where string, rule api.BGPFilterRule, lo, hi *int32) []Rule {
	next := Rule{
		Accept: rule.Action == api.Accept, FromRemotePeers: rule.Source == api.SourceRemotePeers, Interface: rule.Interface,
		SessionType: map[api.BGPFilterPeerType]SessionType{api.PeerEBGP: External, api.PeerIBGP: Internal}[rule.PeerType],
	}
	if rule.CIDR != "" {
		p, ok := r.prefix(where+".cidr", rule.CIDR)
		if !ok {
			r.warn("%s: rejects every route, since its cidr cannot be read", where)
			return append(out, Rule{})
		}
		next.Prefix, next.Operator = p, map[api.BGPFilterMatchOperator]Operator{
			api.MatchEqual: Equal, api.MatchNotEqual: NotEqual, api.MatchIn: In, api.MatchNotIn: NotIn,
		}[rule.MatchOperator]
		if next.Operator == NoPrefix {
			next.Operator = In
			r.warn("%s.matchOperator: is missing; it is taken as In", where)
		}
	}
	switch ranged := lo != nil || hi != nil; {
	case !ranged:
	case next.Operator == Equal:
		r.warn("%s: Equal with a range of lengths never matches; the rule is left out", where)
		return out
	case next.Operator == NotEqual:
		r.warn("%s: NotEqual with a range of lengths always matches; the cidr is left out", where)
		next.Prefix, next.Operator = Rule{}.Prefix, NoPrefix
	case next.Operator == NoPrefix:
		r.warn("%s.prefixLength: needs a cidr; it is left out", where)
	default:
		next.MinLength, next.MaxLength = length(lo), length(hi)
		if hi != nil && *hi < int32(next.Prefix.Bits()) { // nothing inside the cidr is that short
			next.MinLength, next.MaxLength = next.Prefix.Addr().BitLen(), 1
		}
	}
	if c := rule.Communities; c != nil && len(c.Values) > 0 {
		next.Community = string(c.Values[0])
	}
	for _, as := range rule.ASPathPrefix {
		next.ASPrefix = append(next.ASPrefix, uint32(as))
	}
	if rule.Priority != nil {
		next.Priority = uint32(*rule.Priority)
	}
	if next.Accept {
		next.Operations = operations(rule.Operations)
	}
	return append(out, next)
}

func length(n *int32) int {
	if n == nil {
		return 0
	}
	return int(*n)
}

func operations(list []api.BGPFilterOperation) []Operation {
	var out []Operation
	for _, op := range list {
		var next Operation
		switch {
		case op.AddCommunity != nil:
			next.AddCommunity = string(op.AddCommunity.Value)
		case op.PrependASPath != nil:
			for _, as := range op.PrependASPath.Prefix {
				next.Prepend = append(next.Prepend, uint32(as))
			}
		case op.SetPriority != nil:
			next.SetPriority = uint32(op.SetPriority.Value)
		}
		out = append(out, next)
	}
	return out
}
