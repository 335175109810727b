package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/bgp"
)

// ownOnly tells that a rule asks for what is known of the node's own routes only: the interface, of which BGP says nothing,
// and the metric, which the engine cannot compare. Learned routes never match it.
func ownOnly(r *bgp.Rule) bool { return r.Interface != "" || r.Priority != 0 }

// matches tells whether every criterion of a rule holds for the route on a session of the given kind.
func matches(r *bgp.Rule, rt *Route, internal bool) bool {
	switch {
	case !r.MatchesPrefix(rt.Prefix),
		r.FromRemotePeers && !rt.Learned,
		r.SessionType == bgp.External && internal, r.SessionType == bgp.Internal && !internal,
		rt.Learned && ownOnly(r),
		r.Interface != "" && !matchPattern(r.Interface, rt.Interface),
		r.Community != nil && !slices.Contains(rt.Communities, *r.Community),
		len(r.ASPrefix) > len(rt.ASPath) || !slices.Equal(r.ASPrefix, rt.ASPath[:len(r.ASPrefix)]),
		r.Priority != 0 && rt.Preference != PreferenceOf(r.Priority):
		return false
	}
	return true
}

// Apply makes the route what the decision changes of it.
func (v Verdict) Apply(rt Route) Route { return apply(rt, v.Operations) }

// apply makes the route what the operations say.
func apply(rt Route, ops []bgp.Operation) Route {
	for _, op := range ops {
		switch {
		case op.AddCommunity != nil:
			rt.Communities = append(slices.Clip(rt.Communities), *op.AddCommunity)
		case len(op.Prepend) > 0:
			rt.ASPath = append(slices.Clone(op.Prepend), rt.ASPath...)
		case op.SetPriority != 0:
			rt.Preference = PreferenceOf(op.SetPriority)
		}
	}
	return rt
}

// matchPattern is shell-style matching of a name: * stands for any characters, ? for one.
func matchPattern(pattern, name string) bool {
	for pattern != "" {
		switch {
		case pattern[0] == '*':
			for i := 0; i <= len(name); i++ {
				if matchPattern(pattern[1:], name[i:]) {
					return true
				}
			}
			return false
		case name == "" || pattern[0] != '?' && pattern[0] != name[0]:
			return false
		}
		pattern, name = pattern[1:], name[1:]
	}
	return name == ""
}

// contains tells whether inner lies in outer or is it.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Addr().BitLen() == inner.Addr().BitLen() && outer.Contains(inner.Addr())
}

func within(ranges []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return contains(r, p) })
}

// where names a rule as operators know it: "BGPFilter(x).importV4[1]".
func where(filter string, v6, export bool, index int) string {
	return fmt.Sprintf("BGPFilter(%s).%s[%d]", filter, bgp.ListName(v6, export), index)
}
